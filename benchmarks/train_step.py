"""Milliseconds of a DiT training step on each Keras backend and in diffusers, in one run.

Every contender trains the same DiT on the same batch in its own process: noise is drawn and added,
the loss is the mean squared error on the noise, AdamW steps, the average of the weights follows.
They take turns, so that a machine that slows down slows them all; ratios are taken round by round.

    pip install "diffusers==0.39.0"        # the peer
    python benchmarks/train_step.py        # or --rounds=5 --steps=10 --contenders=torch,diffusers
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

SIZE = {"image_size": 16, "patch_size": 2, "channels": 3, "width": 128, "depth": 6, "num_heads": 4}
NUM_CLASSES, BATCH = 8, 32
CONTENDERS = {
    "diffusers": "diffusers, PyTorch eager",
    "diffusers-compiled": "diffusers, torch.compile",
    "tensorflow": "keras_cdiff, TensorFlow XLA",
    "jax": "keras_cdiff, JAX",
    "torch": "keras_cdiff, PyTorch eager",
}


def batches():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (BATCH, 16, 16, 3)).astype("float32")
    return images, rng.integers(0, NUM_CLASSES, BATCH).astype("int32")


def keras_steps():
    """Returns a function: number of steps -> seconds of each, through `fit`."""
    import keras

    from keras_cdiff import DiffusionModel, backbones, objectives, parameterizations, schedules

    model = DiffusionModel(
        backbones.DiT(**SIZE, num_classes=NUM_CLASSES),
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

    return run


def diffusers_steps(compiled):
    """The same for diffusers' DiT and DDPM scheduler, trained as its examples do."""
    import torch
    from diffusers import DDPMScheduler, DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=SIZE["num_heads"],
        attention_head_dim=SIZE["width"] // SIZE["num_heads"],
        in_channels=3,
        out_channels=3,
        num_layers=SIZE["depth"],
        patch_size=SIZE["patch_size"],
        sample_size=SIZE["image_size"],
        num_embeds_ada_norm=NUM_CLASSES,
    ).train()
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

    return run


def work(contender):
    """Answers each line of standard input, a number of steps, with their seconds as JSON."""
    if contender.startswith("diffusers"):
        run = diffusers_steps(compiled=contender.endswith("compiled"))
    else:
        run = keras_steps()
    run(4)  # compiles
    print("ready", flush=True)
    for line in sys.stdin:
        # The first step of a call to fit sets it up.
        print(json.dumps(run(int(line) + 1)[1:]), flush=True)


def start(contender):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if not contender.startswith("diffusers"):
        environment["KERAS_BACKEND"] = contender
    process = subprocess.Popen(
        [sys.executable, __file__, "--worker", contender],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"{contender} did not start:\n{process.stderr.read()[-2000:]}")
    return process


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="steps a contender a round")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return
    names = options.contenders.split(",")
    unknown = sorted(set(names) - set(CONTENDERS))
    if unknown:
        parser.error(f"--contenders must be among {', '.join(CONTENDERS)}. Received: {unknown}")
    processes = {name: start(name) for name in names}
    seconds = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, process in processes.items():
            process.stdin.write(f"{options.steps}\n")
            process.stdin.flush()
            seconds[name].append(statistics.median(json.loads(process.stdout.readline())))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    print(f"DiT, width 128, depth 6, 16 x 16 pixels, patch 2, batch {BATCH}, float32, CPU")
    print(f"{'':30s}{'ms/step':>10s}   times as fast as {CONTENDERS[names[0]]} [by round]")
    for name in names:
        ratios = [a / b for a, b in zip(seconds[names[0]], seconds[name], strict=True)]
        print(
            f"{CONTENDERS[name]:30s}{1000 * statistics.median(seconds[name]):10.1f}   "
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        )


if __name__ == "__main__":
    main()
