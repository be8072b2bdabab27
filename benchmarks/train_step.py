"""Milliseconds of a training step on each Keras backend and in diffusers, in one run.

Every contender trains the same kind of network on the same batch in its own process: noise is drawn
and added, the loss is the mean squared error on the noise, AdamW steps, the average of the weights
follows. They take turns, so that a machine that slows down slows them all; ratios are taken round
by round.

    pip install "diffusers==0.39.0"        # the peer
    python benchmarks/train_step.py        # or --network=song_unet --rounds=5 --steps=10
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

IMAGE_SIZE, NUM_CLASSES, BATCH = 16, 8, 32
WIDTH, PATCH_SIZE, DEPTH, HEADS = 128, 2, 6, 4  # of the transformers
CHANNELS, BLOCKS = (64, 128), 2  # of the U-Nets' levels, and residual blocks in each
NETWORKS = {
    "dit": "DiT, width 128, depth 6, patch 2",
    "song_unet": "SongUNet (DDPM++), 64 and 128 channels, 2 blocks a level",
    "dhariwal_unet": "DhariwalUNet (ADM), 64 and 128 channels, 2 blocks a level",
}
CONTENDERS = {
    "diffusers": "diffusers, PyTorch eager",
    "diffusers-compiled": "diffusers, torch.compile",
    "tensorflow": "keras_cdiff, TensorFlow",
    "jax": "keras_cdiff, JAX",
    "torch": "keras_cdiff, PyTorch eager",
}


def batches():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (BATCH, IMAGE_SIZE, IMAGE_SIZE, 3)).astype("float32")
    return images, rng.integers(0, NUM_CLASSES, BATCH).astype("int32")


def keras_network(name):
    from keras_cdiff import backbones

    if name == "dit":
        return backbones.DiT(
            IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            width=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
            num_classes=NUM_CLASSES,
        )
    network = {"song_unet": backbones.SongUNet, "dhariwal_unet": backbones.DhariwalUNet}[name]
    return network(
        IMAGE_SIZE,
        width=CHANNELS[0],
        channel_multipliers=[channels // CHANNELS[0] for channels in CHANNELS],
        num_blocks=BLOCKS,
        attention_resolutions=[IMAGE_SIZE // 2],
        num_classes=NUM_CLASSES,
        dropout=0.0,
    )


def diffusers_network(name):
    import diffusers

    if name == "dit":
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=WIDTH // HEADS,
            in_channels=3,
            out_channels=3,
            num_layers=DEPTH,
            patch_size=PATCH_SIZE,
            sample_size=IMAGE_SIZE,
            num_embeds_ada_norm=NUM_CLASSES,
        )
    return diffusers.UNet2DModel(
        sample_size=IMAGE_SIZE,
        block_out_channels=CHANNELS,
        layers_per_block=BLOCKS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=CHANNELS[-1] if name == "song_unet" else 64,
        resnet_time_scale_shift="default" if name == "song_unet" else "scale_shift",
        num_class_embeds=NUM_CLASSES,
    )


def keras_steps(name):
    """Returns a function: number of steps -> seconds of each, through `fit`."""
    import keras

    from keras_cdiff import DiffusionModel, objectives, parameterizations, schedules

    model = DiffusionModel(
        keras_network(name),
        schedules.LinearBeta(),
        parameterizations.Epsilon(),
        objectives.UniformTimesteps(),
    )
    model.compile(keras.optimizers.AdamW(1e-4, weight_decay=0.0))
    images, labels = batches()

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.began = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            float(logs["batch_loss"])
            self.seconds.append(time.perf_counter() - self.began)

    clock = Clock()

    def run(count):
        clock.seconds = []
        data = (({"image": images, "label": labels},) for _ in range(count))
        model.fit(data, steps_per_epoch=count, shuffle=False, verbose=0, callbacks=[clock])
        return clock.seconds

    return run, model.backbone.count_params()


def diffusers_steps(name, compiled):
    """The same for diffusers' network and DDPM scheduler, trained as its examples do."""
    import torch
    from diffusers import DDPMScheduler

    network = diffusers_network(name).train()
    average = [p.detach().clone() for p in network.parameters()]
    forward = torch.compile(network) if compiled else network
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0)
    images, labels = batches()
    images = torch.tensor(np.moveaxis(images, -1, 1).copy())
    labels = torch.tensor(labels).long()

    def run(count):
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            noise = torch.randn_like(images)
            timesteps = torch.randint(0, 1000, (BATCH,))
            noisy = scheduler.add_noise(images, noise, timesteps)
            output = forward(noisy, timestep=timesteps, class_labels=labels).sample
            loss = torch.nn.functional.mse_loss(output, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(network.parameters()), 1e-4)
            loss.item()
            seconds.append(time.perf_counter() - began)
        return seconds

    return run, sum(p.numel() for p in network.parameters())


def work(contender, name):
    """Answers each line of standard input, a number of steps, with their seconds as JSON."""
    if contender.startswith("diffusers"):
        # Not needed, and PyPI's does not load beside a CPU build of torch.
        sys.modules["torchvision"] = None
        run, parameters = diffusers_steps(name, compiled=contender.endswith("compiled"))
    else:
        run, parameters = keras_steps(name)
    run(4)  # compiles
    print(f"ready {parameters}", flush=True)
    for line in sys.stdin:
        # The first step of a call to fit sets it up.
        print(json.dumps(run(int(line) + 1)[1:]), flush=True)


def start(contender, network):
    """Returns the process of a contender, and the number of its network's parameters."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if not contender.startswith("diffusers"):
        environment["KERAS_BACKEND"] = contender
    process = subprocess.Popen(
        [sys.executable, __file__, "--worker", contender, "--network", network],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    answer = process.stdout.readline().split()
    if answer[:1] != ["ready"]:
        raise SystemExit(f"{contender} did not start:\n{process.stderr.read()[-2000:]}")
    return process, int(answer[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="dit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="steps a contender a round")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.network)
        return
    names = options.contenders.split(",")
    unknown = sorted(set(names) - set(CONTENDERS))
    if unknown:
        parser.error(f"--contenders must be among {', '.join(CONTENDERS)}. Received: {unknown}")
    started = {name: start(name, options.network) for name in names}
    processes = {name: process for name, (process, _) in started.items()}
    seconds = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, process in processes.items():
            process.stdin.write(f"{options.steps}\n")
            process.stdin.flush()
            seconds[name].append(statistics.median(json.loads(process.stdout.readline())))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    print(f"{NETWORKS[options.network]}; {IMAGE_SIZE} x {IMAGE_SIZE} pixels, batch {BATCH}")
    print(
        f"{'':30s}{'parameters':>12s}{'ms/step':>10s}   "
        f"times as fast as {CONTENDERS[names[0]]} [by round]"
    )
    for name in names:
        ratios = [a / b for a, b in zip(seconds[names[0]], seconds[name], strict=True)]
        print(
            f"{CONTENDERS[name]:30s}{started[name][1]:12,d}"
            f"{1000 * statistics.median(seconds[name]):10.1f}   "
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        )


if __name__ == "__main__":
    main()
