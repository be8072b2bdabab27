"""Memory, exchange and time of a training step of the published DiTs on many accelerators.

All is computed, nothing measured: the networks' shapes are those of `DiT` itself, which is built
without its weights, and the rest follows from the formulas below and the speeds that are given.

Parameters, gradients, Adam's two moments and one average are float32, 20 bytes a parameter. Under
data parallelism each device holds them all and adds up the gradients with the n - 1 others: a ring
sends 2 (n - 1) / n of their bytes. Under model parallelism K devices of a node hold one copy, the
matrices in parts, and compute K times as many images together; for each block they add up (B, N, D)
twice forward and twice backward, and gradients with the same parts of the other copies.

    python benchmarks/scaling_plan.py      # or --rematerialize --images=64 --devices=8,128
"""

import argparse
import math

import keras

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


def activation_bytes(network, number_bytes, rematerialize, together=1):
    """Returns what a device keeps of one image for the backward pass.

    Args:
        network: the DiT.
        number_bytes: of the policy's dtype, 4 or 2.
        rematerialize: whether blocks are computed again.
        together: devices that hold one copy of the model.
    """
    tokens, width = network.grid**2, network.width
    whole = ALWAYS_FLOAT32 * 4 + (WHOLE - ALWAYS_FLOAT32) * number_bytes
    block = (whole + PARTS * number_bytes / together) * width
    block += (SCORES_BYTES + number_bytes) * network.num_heads * tokens / together
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


def plan_step(network, devices, together, options):
    """Returns the bytes and the seconds of a step on one device.

    Args:
        network: the DiT.
        devices: how many there are.
        together: how many of them hold one copy of the model.
        options: those of the command line.
    """
    number_bytes = 4 if options.dtype_policy == "float32" else 2
    matrices, vectors = count_parameters(network)
    parameters, copies = matrices / together + vectors, devices // together
    kept = activation_bytes(network, number_bytes, options.rematerialize, together)
    sums = 4 + 2 * options.rematerialize  # each block's, of all images of a copy
    summed = options.images * together * network.grid**2 * network.width * number_bytes
    gradients = 2 * (copies - 1) / copies * 4 * parameters
    activations = 2 * (together - 1) / together * network.depth * sums * summed
    operations = options.images * floating_point_operations(network, options.rematerialize)
    within = devices <= options.node_devices
    return {
        "state": STATE_BYTES * parameters,
        "kept": options.images * together * kept,
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
    print(f"| network | parameters | GFLOP an image | {' | '.join(heads)} |")
    print("|---|" + "---:|" * (2 + len(heads)))
    for name, network in networks.items():
        operations = floating_point_operations(network, rematerialize=False)
        cells = [name, f"{sum(count_parameters(network)):,}", f"{operations / 1e9:,.1f}"]
        for again in (False, True):
            for number_bytes in kinds.values():
                kept = activation_bytes(network, number_bytes, again)
                cells.append(f"{kept / 1e6:,.0f}")
        print(f"| {' | '.join(cells)} |")


def print_plan(networks, options):
    print(
        f"\n{options.images} images a device, {options.dtype_policy}"
        f"{', rematerialized' if options.rematerialize else ''}; {options.teraflops:g} TFLOP/s of "
        f"which {100 * options.utilization:g} % are used; {options.node_bandwidth:g} GB/s within a "
        f"node of {options.node_devices}, {options.bandwidth:g} GB/s between nodes:\n"
    )
    heads = "network", "devices", "split", "images a step", "GB state", "GB activations"
    heads += "MB gradients", "MB activations sent", "ms computing", "ms exchanging", "computing"
    print(f"| {' | '.join(heads)} |")
    print("|---|---:|---|" + "---:|" * 8)
    for name, network in networks.items():
        for devices in options.devices:
            for together in (1, options.model_devices):
                step = plan_step(network, devices, together, options)
                computing, adding, waiting = step["computing"], step["adding"], step["waiting"]
                hidden = computing / (max(computing, adding) + waiting)
                exposed = computing / (computing + adding + waiting)
                cells = [name, f"{devices:,}", "data" if together == 1 else f"model, {together}"]
                cells += [f"{options.images * devices:,}"]
                cells += [f"{step[key] / 1e9:,.1f}" for key in ("state", "kept")]
                cells += [f"{step[key] / 1e6:,.0f}" for key in ("gradients", "activations")]
                cells += [f"{1000 * computing:,.0f}", f"{1000 * (adding + waiting):,.1f}"]
                cells += [f"{100 * exposed:.0f} to {100 * hidden:.0f} %"]
                print(f"| {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default=",".join(DIT_SIZES))
    parser.add_argument("--devices", default="8,64,256,1024", help="numbers of accelerators")
    parser.add_argument("--patch_size", type=int, default=2, choices=(2, 4, 8))
    parser.add_argument("--latent_size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--num_classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=32, help="a device and step")
    parser.add_argument("--model_devices", type=int, default=8, help="that hold one copy")
    parser.add_argument("--node_devices", type=int, default=8, help="of one machine")
    parser.add_argument(
        "--dtype_policy", default="mixed_bfloat16", choices=("float32", "mixed_bfloat16")
    )
    parser.add_argument("--rematerialize", action="store_true")
    parser.add_argument("--bandwidth", type=float, default=50.0, help="GB/s between nodes")
    parser.add_argument("--node_bandwidth", type=float, default=450.0, help="GB/s within a node")
    parser.add_argument("--teraflops", type=float, default=400.0, help="of a device, in 1e12 / s")
    parser.add_argument("--utilization", type=float, default=0.4, help="share of them that is used")
    options = parser.parse_args()
    sizes = options.sizes.split(",")
    if unknown := sorted(set(sizes) - set(DIT_SIZES)):
        parser.error(f"--sizes must be among {', '.join(DIT_SIZES)}. Received: {unknown}")
    options.devices = [int(number) for number in options.devices.split(",")]
    together, widths = options.model_devices, [DIT_SIZES[size]["width"] for size in sizes]
    if any(number % together for number in [*options.devices, options.node_devices, *widths]):
        parser.error(
            "--model_devices must divide --devices, --node_devices and the networks' widths. "
            f"Received: {together}"
        )
    networks = {
        f"DiT-{size.upper()}/{options.patch_size}": make_network(options, size) for size in sizes
    }
    print_networks(networks, options)
    print_plan(networks, options)


if __name__ == "__main__":
    main()
