"""Multilayer perceptrons in plain PyTorch."""

from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

from .functions import activation


class MLP(nn.Module):
    """Linear layers with an activation between them, and a factor on the logits.

    Around the inner ones (1-α)x + αf(x), or x - (2/c²)Wᵀφ(Wx + b) with `potential` c. With `bare_first` there is no
    activation after the first.
    """

    def __init__(self, config: dict, state: dict[str, Tensor]):
        super().__init__()
        names = [f"layers.{index}" for index in range(config["depth"] - 1)] + ["head"]
        shapes = [state[f"{name}.weight"].shape for name in names]
        linears = [nn.Linear(inner, outer, bias=config["bias"]) for outer, inner in shapes]
        self.layers, self.head = nn.ModuleList(linears[:-1]), linears[-1]
        self.act, self.alpha, self.scale = activation(config["activation"]), config["residual"], config["final_scale"]
        self.potential, self.bare_first = config.get("potential", 0.0), config.get("bare_first", False)

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            image = layer(x) if self.bare_first and not index else self.act(layer(x))
            if index and self.potential:
                x = x - 2 / self.potential**2 * nn.functional.linear(image, layer.weight.T)
            else:
                x = (1 - self.alpha) * x + self.alpha * image if index and self.alpha else image
        return self.scale * self.head(x)
