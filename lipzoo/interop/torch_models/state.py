"""From the names of weights in lipzoo to those of modules of PyTorch."""

from torch import Tensor  # pyright: ignore[reportMissingImports]


def state_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of modules from those of lipzoo. Rows of 8 bits have scales; blocks lie in one array."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(":scale"):
            continue
        scale, tensor = tensors.get(f"{name}:scale"), tensor.float()
        tensor = tensor if scale is None else tensor * scale
        if name.startswith("blocks."):
            for index, part in enumerate(tensor):
                found |= _of_block(f"blocks.{index}.", name.removeprefix("blocks."), part)
        elif name.endswith(".bias"):
            found[name] = tensor[:, 0]
        else:  # The rows of a table are matrices of one column.
            found[f"{name}.weight"] = tensor.flatten(1)
    return found


def _of_block(prefix: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One array of a block of a GPT. The heads of q, k and v lie one after the other, also where each is a matrix."""
    if name == "position":
        return {f"{prefix}position": tensor.flatten(1)}
    place, _, rest = name.partition(".")
    if rest == "bias":
        return {f"{prefix}{name}": tensor.flatten()}
    if rest:  # Of LipsFormer: attention.strength, mlp.center.gain.
        index, kind = int(place == "mlp"), rest.removeprefix("center.")
        target = f"strengths.{index}" if kind == "strength" else f"norms.{index}.{kind}"
        return {prefix + target: tensor.flatten()}
    return {f"{prefix}{name}.weight": tensor.flatten(0, -2)}


def of_convnet(state: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """Kernels by stages: blocks.3.stage0.weight is stages.0.3.weight, of shape (out, in, k, k)."""
    found, size = {}, config["kernel"]
    for name, tensor in state.items():
        if name.startswith("blocks."):
            _, index, stage, kind = name.split(".")
            name = f"stages.{stage.removeprefix('stage')}.{index}.{kind}"
            tensor = tensor.unflatten(-1, (-1, size, size)) if kind == "weight" else tensor
        elif name.startswith("down"):
            place, kind = name.removeprefix("down").split(".")
            name = f"downs.{int(place) - 1}.{kind}"
        found[name] = tensor
    return found


def of_vit(state: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """The places as one row for each patch."""
    places = state.pop("places.weight")
    return {**state, "places": places.reshape(-1, len(state["stem.weight"]))}
