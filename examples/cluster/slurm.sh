#!/bin/bash
# Trains on the GPUs of several machines: sbatch examples/cluster/slurm.sh
#
# One process a machine, as JAX and TensorFlow have it; docs/distributed.md says what PyTorch needs.
# Data and workdir lie where all machines see the same files. A job that is stopped, at the end of
# its time or for another, has 120 s for a checkpoint, and goes on when its turn comes again.
#SBATCH --job-name=keras_cdiff
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

export ADDRESS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):1234"
# Within a Slurm job JAX gives each process one GPU, unless it is told which.
export JAX_LOCAL_DEVICE_IDS="$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))"

code=0
srun --kill-on-bad-exit=0 bash -c 'exec python apps/train.py --backend=jax --distribution=data \
    --preset=dit_xl_2_imagenet256 --data=latents:/shared/imagenet256 \
    --dtype_policy=mixed_bfloat16 --workdir=/shared/runs/xl \
    --job_addresses=$ADDRESS --num_processes=$SLURM_NTASKS --process_id=$SLURM_PROCID' || code=$?

if [ "$code" -eq 75 ]; then # interrupted, with a checkpoint
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
