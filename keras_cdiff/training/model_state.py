"""All that a model's training has changed, as arrays by name, and back into a model.

backbone/003/kernel     the network's variables, its seeds among them
average_0/003/kernel    those of the first average, and so on
model/000/iteration     the model's own
optimizer/004/momentum  the optimizer's, with those of an optimizer inside it
metrics/000/total       the sums behind the metrics of the running log interval

Names consist of the place in the group and the last word of the variable's name, which depend on
neither the backend nor what else the process has built.
"""

import re

import keras
import numpy as np

from keras_cdiff.distribution import to_host
from keras_cdiff.model.diffusion_model import DiffusionModel


def snapshot(model: DiffusionModel) -> dict[str, np.ndarray]:
    """Returns copies on the host of every variable that the next training step depends on.

    A curriculum's state is written into the model first, as before saving.

    Args:
        model: a compiled model whose optimizer is built.

    Raises:
        ValueError: if it is not.
    """
    complete(model)
    # np.array copies: the next step may overwrite the buffers that backends give out.
    return {name: np.array(to_host(v)) for name, v in _variables(model).items()}


def complete(model: DiffusionModel) -> None:
    """Writes into the model what callbacks know, as `snapshot` does first.

    Where several processes train together all of them do this, and one goes on to the snapshot.
    """
    _synchronize(model)
    model.save_own_variables({})  # for the function that `before_save` set


def restore(model: DiffusionModel, arrays: dict[str, np.ndarray], metrics: bool = True) -> None:
    """Assigns what `snapshot` returned, for a model of the same configuration on any backend.

    Integers may have another width, as that differs by backend; all else must agree.

    Args:
        model: a compiled model whose optimizer is built.
        arrays: the arrays by name.
        metrics: whether the metrics, too, are assigned; `fit` resets them as an epoch begins.

    Raises:
        ValueError: if names, shapes or dtypes differ; nothing has been assigned then.
    """
    _synchronize(model)
    variables = _variables(model)
    if not metrics:
        variables, arrays = (
            {name: value for name, value in named.items() if not _is_metric(name)}
            for named in (variables, arrays)
        )
    _assign(variables, arrays)


def restore_metrics(model: DiffusionModel, arrays: dict[str, np.ndarray]) -> None:
    """Assigns the metrics alone, for an epoch that goes on; otherwise as `restore`."""
    _synchronize(model)
    variables, arrays = (
        {name: value for name, value in named.items() if _is_metric(name)}
        for named in (_variables(model), arrays)
    )
    _assign(variables, arrays)


def restore_networks(model: DiffusionModel, arrays: dict[str, np.ndarray]) -> None:
    """Assigns the networks and what the model itself holds, for a model that is not compiled.

    Args:
        model: a model of the same configuration.
        arrays: what `snapshot` returned.

    Raises:
        ValueError: if names, shapes or dtypes differ; nothing has been assigned then.
    """
    groups = _networks_and_model(model)
    _assign(_named(groups), {k: v for k, v in arrays.items() if k.split("/")[0] in groups})


def _assign(variables: dict[str, keras.Variable], arrays: dict[str, np.ndarray]) -> None:
    differences = [f"{name} is missing" for name in variables if name not in arrays]
    differences += [f"{name} is unknown" for name in arrays if name not in variables]
    for name, variable in variables.items():
        if name in arrays:
            differences += _differences(name, variable, arrays[name])
    if differences:
        shown = differences[:10] + ["..."] * (len(differences) > 10)
        raise ValueError(
            "The state must be that of a model and optimizer of the same configuration. "
            f"Received: {len(differences)} differences:\n  " + "\n  ".join(shown)
        )
    for name, variable in variables.items():
        # A copy: JAX may otherwise go on using, and in the end donate, the caller's memory.
        variable.assign(np.array(arrays[name], dtype=variable.dtype))


def _synchronize(model: DiffusionModel) -> None:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        raise ValueError(
            "The state of a training includes the optimizer's: compile the model and call "
            "model.optimizer.build(model.trainable_variables) first. "
            f"Received: optimizer={optimizer!r}"
        )
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()  # within fit() on JAX the weights are not on the model


def _is_metric(name: str) -> bool:
    return name.startswith("metrics/")


def _variables(model: DiffusionModel) -> dict[str, keras.Variable]:
    """Every variable by its name in a snapshot."""
    groups = _networks_and_model(model)
    groups["optimizer"] = model.optimizer.variables
    groups["metrics"] = model.metrics_variables
    return _named(groups)


def _networks_and_model(model: DiffusionModel) -> dict[str, list[keras.Variable]]:
    """The variables of each network, and those of the model itself."""
    groups = {"backbone": model.backbone.variables}
    for number, (_, network) in enumerate(model.averages()):
        groups[f"average_{number}"] = network.variables
    known = {id(variable) for group in groups.values() for variable in group}
    return {**groups, "model": [v for v in model.variables if id(v) not in known]}


def _named(groups: dict[str, list[keras.Variable]]) -> dict[str, keras.Variable]:
    named = {}
    for group, variables in groups.items():
        for place, variable in enumerate(variables):
            # An optimizer's names hold those of layers, which Keras numbers as it builds them.
            word = re.sub(r"_\d+$", "", variable.path.split("/")[-1])
            word = word.split("_")[-1] if group == "optimizer" else word
            named[f"{group}/{place:03d}/{word}"] = variable
    return named


def _differences(name: str, variable: keras.Variable, array: np.ndarray) -> list[str]:
    """What keeps an array from being assigned to a variable."""
    if tuple(variable.shape) != array.shape:
        return [f"{name} has shape {array.shape} and the model {tuple(variable.shape)}"]
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if array.dtype.name == dtype:
        return []
    if array.dtype.kind in "iu" and "int" in dtype:
        limits = np.iinfo(dtype)
        if np.all((array >= limits.min) & (array <= limits.max)):
            return []
    return [f"{name} is {array.dtype.name} and in the model {dtype}"]
