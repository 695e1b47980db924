"""The identity: hands over what arrives, where both ends are equal."""

import pytest
import torch
from fbt_fusions.identity import IdentityFusion

from fbt_plugins import FUSIONS
from fbt_plugins.distill.fusion import build_junctions
from fbt_plugins.distill.splice import Splice
from fbt_plugins.errors import ConfigError
from fbt_plugins.models.staged import StageSpec
from fbt_plugins.testing.checks import check_fusion

MAP = StageSpec("NCHW", 24, (8, 8))
TOKENS = StageSpec("NLC", 16, (4, 3), 2)


def test_identity_hands_over_what_arrives() -> None:
    for layout in ("NCHW", "NHWC"):
        check_fusion(IdentityFusion(), layouts=(layout,))
    x = torch.randn(2, 14, 16)
    junctions = FUSIONS.build(dict(type="IdentityFusion")).build([TOKENS] * 4, [TOKENS] * 4, Splice.parse("S1-4+Thead"))
    assert junctions["S4_T5"](x) is x


def order(*numbers: int) -> StageSpec:
    return StageSpec("NLC", 16, (4, 3), 2, raster=False, order=torch.tensor(numbers) if numbers else None)


@pytest.mark.parametrize(
    ("source", "target", "what"),
    [
        (MAP, StageSpec("NHWC", 24, (8, 8)), "layouts differ"),
        (MAP, StageSpec("NCHW", 24, (4, 4)), "grids differ"),
        (TOKENS, StageSpec("NLC", 20, (4, 3), 1), "widths, numbers of prefix tokens differ"),
        (TOKENS, order(*range(12)), "orders of tokens differ"),
        (order(*range(12)), order(*reversed(range(12))), "orders of tokens differ"),
        (order(), order(), "orders of tokens differ"),  # nobody knows them
    ],
)
def test_identity_refuses_unequal_ends_with_both_shapes(source: StageSpec, target: StageSpec, what: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_junctions(IdentityFusion(), [source] * 4, [target] * 4, Splice.parse("S1-3+T4"))
    shapes = f"S3_T4 from {source} to {target}"
    reason = f"an identity needs equal ends; at S3_T4 {what}"
    assert str(refused.value) == f"splice S1-3+T4 cannot be built ({shapes}): {reason}"
    same = order(*range(12))
    assert IdentityFusion().build([same] * 4, [same] * 4, Splice.parse("S1-3+T4"))
