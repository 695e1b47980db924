"""What authors of plugins may need besides ``from fbt_plugins import ...``.

Like that, it is kept from release to release; everything else in ``fbt_plugins`` may move or change.

For architectures: ``NetPart`` is a stage whose code begins at its whole network. ``isotropic_ends`` says where the
field cuts a row of equal blocks. ``InHand`` says how a network is cut that is built already. ``meta_copy`` and
``Shortened`` run a network without weights. ``pixels`` reads an image size. ``give_logits`` lets a network answer with
logits that answers with an object, which is what ``logits_of`` does. ``proportional`` tells whether a grid has the
image's proportions, and ``find_tokens`` which ``TokenGrid`` the tokens of a network are, ``probe_tokens`` whether a
model's are as it says. ``split_steps`` reads the names of a declaration. ``Catalogue`` lets tools list what can be
built. ``files_of``, ``place_of``, ``calling`` and ``last_line`` find the line of a network's own code, for messages.

For fusions: ``ends`` gives what arrives at a junction, and what the stage behind it takes.

For all: ``argument_problems`` holds arguments against a signature. ``one_line`` puts an exception on one line.
``PartError`` says that somebody's part gives something else than it must.
"""

from .distill.fusion import ends
from .errors import PartError, one_line
from .models.declaration import Catalogue, isotropic_ends, split_steps
from .models.image_sizes import pixels, proportional
from .models.in_hand import InHand
from .models.logits import features_of, give_features, give_logits, logits_of
from .models.net_part import NetPart
from .models.places import calling, files_of, last_line, place_of
from .models.token_order import TokenGrid, find_tokens, probe_tokens
from .models.weightless import Shortened, meta_copy
from .registry.signatures import argument_problems

__all__ = [
    "Catalogue",
    "InHand",
    "NetPart",
    "PartError",
    "Shortened",
    "TokenGrid",
    "argument_problems",
    "calling",
    "ends",
    "features_of",
    "files_of",
    "find_tokens",
    "give_features",
    "give_logits",
    "isotropic_ends",
    "last_line",
    "logits_of",
    "meta_copy",
    "one_line",
    "pixels",
    "place_of",
    "probe_tokens",
    "proportional",
    "split_steps",
]
