"""Memory that a training step of DiT needs on each device: ModelParallel beside DataParallel, JAX.

The figures are XLA's own of the compiled step, for virtual devices on a CPU. The step is not run,
and no array of the network is made: only their shapes and how they are split go in. State is the
weights, their average, AdamW's two moments and the batch; the rest is gradients and activations.
Then a small DiT trains a few steps both ways: the losses must agree. Every distribution has its own
process.

    python benchmarks/model_parallel.py               # or --size=L --model_devices=2,4,8
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

NUM_CLASSES = 1000


def make_model(network):
    """Returns a compiled model whose optimizer has its slots."""
    import keras

    from keras_cdiff import DiffusionModel, objectives, parameterizations, schedules

    parts = schedules.LinearBeta(), parameterizations.Epsilon(), objectives.UniformTimesteps()
    model = DiffusionModel(network, *parts)
    model.compile(keras.optimizers.AdamW(1e-4, weight_decay=0.0))
    model.optimizer.build(model.trainable_variables)
    return model


def make_distribution(options, model_devices):
    """Returns DataParallel for 1, else ModelParallel with as many devices to each copy."""
    from keras.distribution import DataParallel, DeviceMesh, ModelParallel

    from keras_cdiff.distribution.layouts import layout_map

    if model_devices == 1:
        return DataParallel(auto_shard_dataset=False)
    shape = (options.devices // model_devices, model_devices)
    return ModelParallel(
        layout_map=layout_map(DeviceMesh(shape, ["batch", "model"])),
        batch_dim_name="batch",
        auto_shard_dataset=False,
    )


def account(options, distribution):
    """Returns the parameters of the network, and XLA's account of memory for one device."""
    import jax

    from keras_cdiff import backbones

    made = []

    def build():
        network = backbones.DiT.from_name(
            f"DiT-{options.size}/2",
            options.image_size,
            channels=options.channels,
            num_classes=NUM_CLASSES,
            rematerialize=options.rematerialize,
        )
        made.append(make_model(network))

    def described(shape, dtype, layout):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.backend_layout)

    jax.eval_shape(build)  # the variables get shapes and layouts, and no values
    (model,) = made
    state = tuple(
        [described(v.shape, v.dtype, distribution.get_variable_layout(v)) for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )
    shapes = {
        "image": (options.batch_size, options.image_size, options.image_size, options.channels),
        "label": (options.batch_size,),
    }
    dtypes = {"image": "float32", "label": "int32"}
    batch = {
        name: described(shape, dtypes[name], distribution.get_data_layout(shape))
        for name, shape in shapes.items()
    }
    # As Keras' fit compiles it.
    shardings = jax.tree.map(lambda description: description.sharding, state)
    step = jax.jit(model.train_step, donate_argnums=0, out_shardings=(None, shardings))
    memory = step.lower(state, (batch,)).compile().memory_analysis()
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables), memory


def train_small(options):
    """Returns the losses of a small DiT's first steps."""
    import keras

    from keras_cdiff import backbones

    keras.utils.set_random_seed(0)
    network = backbones.DiT(8, width=64, depth=1, num_heads=4, num_classes=NUM_CLASSES)
    model = make_model(network)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.uniform(-1, 1, (options.batch_size, 8, 8, 3)).astype("float32"),
        "label": rng.integers(0, NUM_CLASSES, options.batch_size).astype("int32"),
    }
    steps = (model.train_on_batch(batch, return_dict=True) for _ in range(options.steps))
    return [float(logs["batch_loss"]) for logs in steps]


def work(options):
    """Prints the measurements of one distribution as JSON."""
    distribution = make_distribution(options, options.worker)
    with distribution.scope():
        began = time.perf_counter()
        parameters, memory = account(options, distribution)
        seconds = time.perf_counter() - began
        losses = train_small(options)
    # What a step returns takes the place of the state that went in.
    rest = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    answer = {"parameters": parameters, "state": memory.argument_size_in_bytes, "rest": rest}
    print(json.dumps({**answer, "seconds": seconds, "losses": losses}))


def measure(options, model_devices):
    """Returns what `work` prints, from a process of its own."""
    # Without LLVM's optimisation, which takes minutes and changes no array of the step.
    flags = f"--xla_force_host_platform_device_count={options.devices}"
    flags += " --xla_backend_optimization_level=0"
    answer = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], f"--worker={model_devices}"],
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        raise SystemExit(f"{answer.stderr[-2000:]}\nmodel_devices={model_devices} failed")
    return json.loads(answer.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("S", "B", "L", "XL"), default="XL")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=16, help="of all devices together")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--model_devices", default="4", help="that share a model, of --devices")
    parser.add_argument("--rematerialize", action="store_true")
    parser.add_argument("--steps", type=int, default=3, help="of the small DiT")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    divisors = {str(n) for n in range(2, options.devices + 1) if options.devices % n == 0}
    counts = options.model_devices.split(",")
    if not divisors.issuperset(counts):
        parser.error(
            "--model_devices must be divisors of --devices above 1. "
            f"Received: model_devices={options.model_devices}, devices={options.devices}"
        )
    plain = measure(options, 1)
    print(
        f"DiT-{options.size}/2 of {plain['parameters'] / 1e6:,.1f} M parameters, "
        f"{options.image_size} x {options.image_size} x {options.channels}, batch "
        f"{options.batch_size}, float32, with{'' if options.rematerialize else 'out'} "
        f"rematerialization; MB on each of {options.devices} devices\n"
    )
    print("| distribution | state | rest | together | times | s to compile | losses, small DiT |")
    print("|---|---:|---:|---:|---:|---:|---|")
    worst = 0.0
    for count in (1, *map(int, counts)):
        result = plain if count == 1 else measure(options, count)
        name = f"ModelParallel, {options.devices // count} x {count}"
        total, base = (r["state"] + r["rest"] for r in (result, plain))
        cells = [f"DataParallel, {options.devices}" if count == 1 else name]
        cells += [f"{n / 1e6:,.0f}" for n in (result["state"], result["rest"], total)]
        cells += [f"{total / base:.2f}", f"{result['seconds']:.0f}"]
        cells.append(", ".join(f"{loss:.6f}" for loss in result["losses"]))
        print(f"| {' | '.join(cells)} |", flush=True)
        pairs = zip(result["losses"], plain["losses"], strict=True)
        worst = max(worst, *(abs(a / b - 1) for a, b in pairs))
    print(f"\nlargest relative difference of a loss from DataParallel's: {worst:.1e}")


if __name__ == "__main__":
    main()
