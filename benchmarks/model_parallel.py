"""Memory that a training step of DiT needs on each device: ModelParallel beside DataParallel, JAX.

The figures are XLA's own of the compiled step, for virtual devices on a CPU. The step is not run,
and no array of the network is made: only their shapes and how they are split go in. State is the
weights, their average, AdamW's two moments and the batch; the rest is gradients and activations.
Then a small DiT trains a few steps both ways: the losses must agree. Every distribution has its own
process.

    python benchmarks/model_parallel.py               # or --size=L --model_devices=2,4,8
"""

import numpy as np
import timing

NUM_CLASSES = 1000


def make_model(network):
    """Returns a compiled model whose optimizer has its slots."""
    model = timing.ddpm_model(network)
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
    shape = (options.image_size, options.image_size, options.channels)
    batch = {
        name: described(v.shape, v.dtype, distribution.get_data_layout(v.shape))
        for name, v in timing.random_batch(options.batch_size, shape, NUM_CLASSES).items()
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
    batch = timing.random_batch(options.batch_size, (8, 8, 3), NUM_CLASSES)
    steps = (model.train_on_batch(batch, return_dict=True) for _ in range(options.steps))
    return [float(logs["batch_loss"]) for logs in steps]


def work(options):
    """Returns the measurements of one distribution."""
    distribution = make_distribution(options, int(options.worker))
    results = []
    with distribution.scope():
        seconds = timing.seconds_of(lambda: results.extend(account(options, distribution)))
        losses = train_small(options)
    parameters, memory = results
    # What a step returns takes the place of the state that went in.
    rest = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    answer = {"parameters": parameters, "state": memory.argument_size_in_bytes, "rest": rest}
    return {**answer, "seconds": seconds, "losses": losses}


def measure(options, model_devices):
    # Without LLVM's optimisation, which takes minutes and changes no array of the step.
    flags = f"--xla_force_host_platform_device_count={options.devices}"
    flags += " --xla_backend_optimization_level=0"
    return timing.measure(str(model_devices), KERAS_BACKEND="jax", XLA_FLAGS=flags)


def main():
    options = timing.read_flags(
        __doc__,
        size=("XL", "of the published DiTs", ("S", "B", "L", "XL")),
        image_size=32,
        channels=4,
        batch_size=(16, "of all devices together"),
        devices=8,
        model_devices=([4], "that share a model, of --devices"),
        rematerialize=False,
        steps=(3, "of the small DiT"),
    )
    if options.worker:
        timing.tell(work(options))
        return
    if any(count < 2 or options.devices % count for count in options.model_devices):
        options.error(
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
    results = {1: plain} | {n: measure(options, n) for n in options.model_devices}
    rows, worst = [], 0.0
    for count, result in results.items():
        name = f"ModelParallel, {options.devices // count} x {count}"
        total, base = (r["state"] + r["rest"] for r in (result, plain))
        cells = [f"DataParallel, {options.devices}" if count == 1 else name]
        cells += [f"{n / 1e6:,.0f}" for n in (result["state"], result["rest"], total)]
        cells += [f"{total / base:.2f}", f"{result['seconds']:.0f}"]
        rows.append([*cells, ", ".join(f"{loss:.6f}" for loss in result["losses"])])
        pairs = zip(result["losses"], plain["losses"], strict=True)
        worst = max(worst, *(abs(a / b - 1) for a, b in pairs))
    head = "distribution", "state", "rest", "together", "times", "s to compile", "losses, small DiT"
    timing.print_table(head, rows)
    print(f"\nlargest relative difference of a loss from DataParallel's: {worst:.1e}")


if __name__ == "__main__":
    main()
