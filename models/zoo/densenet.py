"""DenseNet-121 (Huang 2016)."""

from __future__ import annotations

from models.zoo.builder import Builder


def densenet121(*, small: bool) -> Builder:
    """Every layer reads all layers before it in its block: long Concats, many live tensors."""
    b = Builder("densenet121")
    growth = 8 if small else 32
    x = b.input(1, 3, 64 if small else 224, 64 if small else 224)
    x = b.max_pool(b.conv_bn(x, 2 * growth, 7, 2), 3, 2, 1)
    blocks = (2, 2, 3, 2) if small else (6, 12, 24, 16)
    for index, layers in enumerate(blocks):
        for _ in range(layers):
            y = b.conv(b.relu(b.bn(x)), 4 * growth, 1, bias=False)
            y = b.conv(b.relu(b.bn(y)), growth, bias=False)
            x = b.concat([x, y])
        if index < len(blocks) - 1:
            x = b.conv(b.relu(b.bn(x)), x.channels // 2, 1, bias=False)
            x = b.average_pool(x, 2, 2)
    x = b.global_pool(b.relu(b.bn(x)))
    b.output(b.gemm(b.flatten(x), 10 if small else 1000, 2.0), "logits")
    return b
