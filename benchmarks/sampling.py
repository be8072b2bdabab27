"""Images a second: of an exported SavedModel, of sampling in process, and of diffusers, in one run.

Every contender draws class-conditional samples of a DiT of the same size by DDIM, with guidance or
without, each in its own process. They take turns, so that a machine that slows down slows them all;
ratios are taken round by round.

    pip install "diffusers==0.39.0"        # the peer
    python benchmarks/sampling.py          # or --rounds=3 --num_steps=10 --guidance=2
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

IMAGE_SIZE, NUM_CLASSES = 16, 8
WIDTH, PATCH_SIZE, DEPTH, HEADS = 128, 2, 6, 4
BATCHES = (1, 64)
CONTENDERS = {
    "diffusers": "diffusers, PyTorch eager",
    "exported": "SavedModel",
    "exported-xla": "SavedModel with XLA",
    "tensorflow": "sample(), TensorFlow",
    "jax": "sample(), JAX",
    "torch": "sample(), PyTorch eager",
}


def keras_model():
    from keras_cdiff import DiffusionModel, backbones, objectives, parameterizations, schedules

    network = backbones.DiT(
        IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        width=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=NUM_CLASSES,
    )
    return DiffusionModel(
        network,
        schedules.LinearBeta(),
        parameterizations.Epsilon(),
        objectives.UniformTimesteps(),
    )


def in_process(options):
    """Returns a function that draws a batch of images by `sample`."""
    from keras_cdiff import sample, samplers

    model, sampler = keras_model(), samplers.DDIM(options.num_steps)
    model.compile()

    def draw(batch):
        labels = np.arange(batch) % NUM_CLASSES
        sample(
            model,
            batch,
            sampler,
            label=labels,
            guidance=options.guidance,
            progress=False,
        )

    return draw


def exported(options, jit_compile):
    """Returns a function that draws a batch of images by a SavedModel."""
    import tensorflow as tf

    from keras_cdiff import export_sampler, samplers

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model"
        sampler = samplers.DDIM(options.num_steps)
        export_sampler(keras_model(), path, sampler, jit_compile=jit_compile)
        loaded = tf.saved_model.load(path)

    def draw(batch):
        loaded.signatures["sample"](
            seeds=tf.range(batch, dtype=tf.int64),
            label=tf.range(batch) % NUM_CLASSES,
            guidance=tf.constant(float(options.guidance)),
        )["images"].numpy()

    return draw


def diffusers_pipeline(options):
    """Returns a function that draws a batch of images as DiTPipeline does, less its decoder."""
    import torch
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=3,
        out_channels=3,
        num_layers=DEPTH,
        patch_size=PATCH_SIZE,
        sample_size=IMAGE_SIZE,
        num_embeds_ada_norm=NUM_CLASSES,
    ).eval()
    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=True)

    @torch.no_grad()
    def draw(batch):
        labels = torch.arange(batch) % NUM_CLASSES
        x = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE)
        guided = options.guidance != 1.0
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, NUM_CLASSES)])
        scheduler.set_timesteps(options.num_steps)
        for timestep in scheduler.timesteps:
            inputs = torch.cat([x, x]) if guided else x
            times = timestep.expand(len(inputs))
            noise = network(inputs, timestep=times, class_labels=labels).sample
            if guided:
                conditional, unconditional = noise.chunk(2)
                noise = unconditional + options.guidance * (conditional - unconditional)
            x = scheduler.step(noise, timestep, x).prev_sample
        ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()

    return draw


def work(contender, options):
    """Answers each line of standard input, a batch size, with the seconds that one took."""
    if contender == "diffusers":
        # Not needed, and PyPI's does not load beside a CPU build of torch.
        sys.modules["torchvision"] = None
        draw = diffusers_pipeline(options)
    elif contender.startswith("exported"):
        draw = exported(options, jit_compile=contender.endswith("xla"))
    else:
        draw = in_process(options)
    for batch in BATCHES:
        draw(batch)  # compiles
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        draw(int(line))
        print(json.dumps(time.perf_counter() - began), flush=True)


def start(contender):
    backend = contender if contender in ("jax", "torch") else "tensorflow"
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
    process = subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], f"--worker={contender}"],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": backend},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )

    def answer():
        line = process.stdout.readline()
        if not line:
            errors.seek(0)
            raise SystemExit(f"{contender} has ended:\n{errors.read()[-2000:]}")
        return line.strip()

    process.answer = answer
    if (line := answer()) != "ready":
        raise SystemExit(f"{contender} said {line!r}")
    return process


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num_steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options)
        return
    names = options.contenders.split(",")
    if unknown := sorted(set(names) - set(CONTENDERS)):
        parser.error(f"--contenders must be among {', '.join(CONTENDERS)}. Received: {unknown}")
    processes = {name: start(name) for name in names}
    seconds = {(name, batch): [] for name in names for batch in BATCHES}
    for _ in range(options.rounds):
        for (name, batch), taken in seconds.items():
            process = processes[name]
            process.stdin.write(f"{batch}\n")
            process.stdin.flush()
            taken.append(json.loads(process.answer()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    print(
        f"DiT, width {WIDTH}, depth {DEPTH}, patch {PATCH_SIZE}; {IMAGE_SIZE} x {IMAGE_SIZE} "
        f"pixels, DDIM, {options.num_steps} steps, guidance {options.guidance:g}\n"
    )
    print(f"| | {' | '.join(f'batch {b}, images/s | times {names[0]}' for b in BATCHES)} |")
    print("|---|" + "---:|" * 2 * len(BATCHES))
    for name in names:
        cells = []
        for batch in BATCHES:
            base, own = seconds[names[0], batch], seconds[name, batch]
            ratios = [a / b for a, b in zip(base, own, strict=True)]
            cells.append(f"{batch / statistics.median(own):,.2f}")
            cells.append(f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
        print(f"| {CONTENDERS[name]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
