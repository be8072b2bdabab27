"""Memory, exchange and time of a training step of the published DiTs on many accelerators.

All is computed, nothing measured: the networks' shapes are those of `DiT` itself, which is built
without its weights, and the rest follows from the formulas below and the speeds that are given.

Parameters, gradients, Adam's two moments and one average are float32, 20 bytes a parameter. Under
data parallelism each device holds them all and adds up the gradients with the n - 1 others: a ring
sends 2 (n - 1) / n of their bytes. Under model parallelism K devices of a node hold one copy, the
matrices in parts, and compute K times as many images jointly; for each block they add up (B, N, D)
twice forward and twice backward, and gradients with the same parts of the other copies.

    python benchmarks/scaling_plan.py      # or --rematerialize --images=64 --devices=8,128
"""

import math

import keras
import timing

from keras_cdiff import backbones
from keras_cdiff.presets import DIT_SIZES

STATE_BYTES = 20  # a parameter: itself, its gradient, two moments, one average
# What the backward pass needs of a block, in numbers a token and in units of the width. Whole on
# each device: four of each layer norm and its modulation, of which two are always float32, and the
# outputs of attention and perceptron. In parts: query, key, value and what was attended; the hidden
# layer before and after its GELU, and twice within.
WHOLE, ALWAYS_FLOAT32, PARTS = 10, 4, 20
# Attention's matrices (N, N) of each head: two of float32, one of the policy's dtype.
SCORES_BYTES = 8
# What is kept outside the blocks, and of each block if the rest of it is computed again.
AROUND, REMATERIALIZED = 12, 2


def make_network(options, size):
    """Returns a published DiT, of which nothing but the shapes exists."""
    with keras.StatelessScope(initialize_variables=False):
        return backbones.DiT.from_name(
            f"DiT-{size.upper()}/{options.patch_size}",
            options.latent_size,
            channels=options.channels,
            out_channels=2 * options.channels,
            num_classes=options.num_classes,
        )


def count_parameters(network):
    """Returns how many parameters are in matrices, and how many in vectors."""
    counts = [0, 0]
    for variable in network.trainable_variables:
        counts[len(variable.shape) == 1] += math.prod(variable.shape)
    return counts


def activation_bytes(network, number_bytes, rematerialize, model_devices=1):
    """Returns what a device keeps of one image for the backward pass.

    Args:
        network: the DiT.
        number_bytes: of the policy's dtype, 4 or 2.
        rematerialize: whether blocks are computed again.
        model_devices: devices that hold one copy of the model.
    """
    tokens, width = network.grid**2, network.width
    whole = ALWAYS_FLOAT32 * 4 + (WHOLE - ALWAYS_FLOAT32) * number_bytes
    block = (whole + PARTS * number_bytes / model_devices) * width
    block += (SCORES_BYTES + number_bytes) * network.num_heads * tokens / model_devices
    around = AROUND * number_bytes * width
    if rematerialize:
        around += network.depth * REMATERIALIZED * number_bytes * width
    return tokens * (around + block * (1 if rematerialize else network.depth))


def floating_point_operations(network, rematerialize):
    """Returns those of a training step, for one image.

    A multiplication and an addition for each weight and token, twice as many in the backward pass;
    of modulations and embeddings once an image; and N additions more for each token's query and
    attended values. So less than 6 N times the parameters, a third of which are modulations.
    """
    tokens, width, depth = network.grid**2, network.width, network.depth
    blocks = depth * (tokens * (12 * width**2 + 2 * tokens * width) + 6 * width**2)
    patch = network.patch_size**2 * (network.channels + network.out_channels)
    ends = tokens * width * patch + 3 * width**2 + network.level_embedding.num_frequencies * width
    return 2 * ((4 if rematerialize else 3) * blocks + 3 * ends)


def plan_step(network, devices, model_devices, options):
    """Returns the bytes and the seconds of a step on one device.

    Args:
        network: the DiT.
        devices: how many there are.
        model_devices: how many of them hold one copy of the model.
        options: those of the command line.
    """
    number_bytes = 4 if options.dtype_policy == "float32" else 2
    matrices, vectors = count_parameters(network)
    parameters, copies = matrices / model_devices + vectors, devices // model_devices
    kept = activation_bytes(network, number_bytes, options.rematerialize, model_devices)
    sums = 4 + 2 * options.rematerialize  # each block's, of all images of a copy
    summed = options.images * model_devices * network.grid**2 * network.width * number_bytes
    gradients = 2 * (copies - 1) / copies * 4 * parameters
    activations = 2 * (model_devices - 1) / model_devices * network.depth * sums * summed
    operations = options.images * floating_point_operations(network, options.rematerialize)
    within = devices <= options.node_devices
    return {
        "state": STATE_BYTES * parameters,
        "kept": options.images * model_devices * kept,
        "gradients": gradients,
        "activations": activations,
        "computing": operations / (1e12 * options.teraflops * options.utilization),
        "adding": gradients / (1e9 * (options.node_bandwidth if within else options.bandwidth)),
        "waiting": activations / (1e9 * options.node_bandwidth),
    }


def print_networks(networks, options):
    print(
        f"{options.latent_size} x {options.latent_size} x {options.channels} latents, patch "
        f"{options.patch_size}, {options.num_classes:,} classes; activations kept of an image:\n"
    )
    kinds = {"float32": 4, "bfloat16": 2}
    heads = [f"MB, {kind}{again}" for again in ("", ", rematerialized") for kind in kinds]
    rows = []
    for name, network in networks.items():
        operations = floating_point_operations(network, rematerialize=False)
        cells = [name, f"{sum(count_parameters(network)):,}", f"{operations / 1e9:,.1f}"]
        for again in (False, True):
            for number_bytes in kinds.values():
                kept = activation_bytes(network, number_bytes, again)
                cells.append(f"{kept / 1e6:,.0f}")
        rows.append(cells)
    timing.print_table(["network", "parameters", "GFLOP an image", *heads], rows)


def print_plan(networks, options):
    print(
        f"\n{options.images} images a device, {options.dtype_policy}"
        f"{', rematerialized' if options.rematerialize else ''}; {options.teraflops:g} TFLOP/s of "
        f"which {100 * options.utilization:g} % are used; {options.node_bandwidth:g} GB/s within a "
        f"node of {options.node_devices}, {options.bandwidth:g} GB/s between nodes:\n"
    )
    heads = "network", "devices", "split", "images a step", "GB state", "GB activations"
    heads += "MB gradients", "MB activations sent", "ms computing", "ms exchanging", "computing"
    rows = []
    for name, network in networks.items():
        for devices in options.devices:
            for model_devices in (1, options.model_devices):
                step = plan_step(network, devices, model_devices, options)
                computing, adding, waiting = step["computing"], step["adding"], step["waiting"]
                hidden = computing / (max(computing, adding) + waiting)
                exposed = computing / (computing + adding + waiting)
                cells = [
                    name,
                    f"{devices:,}",
                    "data" if model_devices == 1 else f"model, {model_devices}",
                ]
                cells += [f"{options.images * devices:,}"]
                cells += [f"{step[key] / 1e9:,.1f}" for key in ("state", "kept")]
                cells += [f"{step[key] / 1e6:,.0f}" for key in ("gradients", "activations")]
                cells += [f"{1000 * computing:,.0f}", f"{1000 * (adding + waiting):,.1f}"]
                cells += [f"{100 * exposed:.0f} to {100 * hidden:.0f} %"]
                rows.append(cells)
    timing.print_table(heads, rows)


def main():
    options = timing.read_flags(
        __doc__,
        sizes=list(DIT_SIZES),
        devices=([8, 64, 256, 1024], "numbers of accelerators"),
        patch_size=(2, "of the networks", (2, 4, 8)),
        latent_size=32,
        channels=4,
        num_classes=1000,
        images=(32, "a device and step"),
        model_devices=(8, "that hold one copy"),
        node_devices=(8, "of one machine"),
        dtype_policy=("mixed_bfloat16", None, ("float32", "mixed_bfloat16")),
        rematerialize=False,
        bandwidth=(50.0, "GB/s between nodes"),
        node_bandwidth=(450.0, "GB/s within a node"),
        teraflops=(400.0, "of a device, in 1e12 / s"),
        utilization=(0.4, "share of them that is used"),
    )
    widths = [DIT_SIZES[size]["width"] for size in options.sizes]
    if any(
        number % options.model_devices
        for number in [*options.devices, options.node_devices, *widths]
    ):
        options.error(
            "--model_devices must divide --devices, --node_devices and the networks' widths. "
            f"Received: {options.model_devices}"
        )
    networks = {
        f"DiT-{size.upper()}/{options.patch_size}": make_network(options, size)
        for size in options.sizes
    }
    print_networks(networks, options)
    print_plan(networks, options)


if __name__ == "__main__":
    main()
