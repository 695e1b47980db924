"""A small convolutional network, cut into four stages and a head."""

from torch import Tensor, nn

from fbt_plugins import Declaration, StagedModel, load_weights

CUT = Declaration(
    stem="stem",
    units="blocks.*",
    cuts="blocks.0 blocks.1 blocks.2 blocks.3",
    head="pool classifier",
)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """(N, inputs, H, W) -> (N, outputs, H / 2, W / 2)."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class MyPartsNet(nn.Module):
    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(block(width * 2**i, width * 2 ** (i + 1)) for i in range(4)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(width * 16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.pool(self.blocks(self.stem(images))))


def build_my_parts_net(num_classes: int, width: int = 8, checkpoint: str | None = None) -> StagedModel:
    net = MyPartsNet(num_classes, width)
    if checkpoint:
        load_weights(net, checkpoint, "my_parts_net")
    about = {"mean": (0.286,) * 3, "std": (0.353,) * 3, "arguments": {"num_classes": num_classes, "width": width}}
    return CUT.cut(net, image_size=(32, 32), name="my_parts_net", **about)
