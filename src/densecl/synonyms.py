"""What people type who know other tools -> the setting that they mean. Free of torch."""

from __future__ import annotations

from collections.abc import Collection

from densecl.errors import flag, nearest

#: A setting -> how else it is called, without hyphens and underscores.
NAMES = {
    "data": "dataset datadir datapath images imagedir input source root traindir trainpath",
    "out": "output outputdir outdir savedir project workdir logdir",
    "resume": "continue resumefrom restart",
    "backbone": "model arch architecture network net encoder modelname timmname",
    "init": "pretrained weights checkpoint ckpt initweights loadfrom startfrom pretrainedweights",
    "freeze_norm_statistics": "freeze freezebn freezenorm",
    "image_size": "size imgsz imgsize inputsize cropsize resolution image",
    "channels": "inchans inchannels numchannels inputchannels",
    "batch_size": "bs batch batchsize trainbatchsize globalbatchsize",
    "accumulate": "gradaccum accumulategradbatches gradientaccumulation gradientaccumulationsteps accumsteps",
    "optimizer": "opt optim",
    "learning_rate": "lr baselr maxlr learningrate stepsize",
    "weight_decay": "wd weightdecay",
    "warmup_epochs": "warmup warmupsteps",
    "clip_gradient": "gradclip clipgrad gradientclip gradientclipval maxgradnorm clip",
    "epochs": "epoch numepochs nepochs maxepochs trainepochs ep",
    "steps": "maxsteps numsteps iterations iters maxiter niter trainsteps",
    "time_limit": "time maxtime hours duration timeout walltime",
    "key_momentum": "ema emamomentum emadecay momentumencoder teachermomentum targetmomentum",
    "queue_length": "queue queuesize memorybank memorysize",
    "temperature": "temp tau",
    "output_stride": "stride dilation",
    "local_crops": "ncrops localcropsnumber multicrop",
    "precision": "amp fp16 bf16 half float16 mixedprecision dtype fp32",
    "devices": "gpus gpu ngpus numgpus numdevices ndevices nprocpernode",
    "nodes": "numnodes nnodes machines",
    "workers": "numworkers nworkers dataworkers jobs",
    "sync_batch_norm": "syncbn syncbatchnorm",
    "checkpoint_activations": "gradcheckpointing gradientcheckpointing activationcheckpointing",
    "log_every": "logfreq loginterval printfreq logeverynsteps",
    "checkpoint_every": "saveevery savefreq saveinterval ckptevery",
    "probe": "valdata validationdata evaldata labeled labeleddata onlineprobe onlineeval monitor",
    "keep_best": "savebest bestonly savebestonly best",
    "stop_early": "earlystop earlystopping patience",
    "loggers": "logger wandb tensorboard mlflow reportto",
    "seeds": "numseeds nseeds",
    "task": "tasks benchmark",
    "json": "jsonfile output out",
    "test_split": "split testset valsplit",
    "label_fraction": "fraction labelfrac percent",
}

#: What is no setting, and why.
ADVICE = {
    "overwrite": "A run never overwrites another: choose another --out, or remove that folder.",
    "force": "A run never overwrites another: choose another --out, or remove that folder.",
    "existok": "A run never overwrites another: choose another --out, or remove that folder.",
    "device": "A GPU is used where there is one. CUDA_VISIBLE_DEVICES=1 chooses which, --devices how many.",
    "cuda": "A GPU is used where there is one. CUDA_VISIBLE_DEVICES=1 chooses which, --devices how many.",
    "cpu": "A GPU is used where there is one. To use none: CUDA_VISIBLE_DEVICES= in front of the command.",
    "verbose": "All that is said stands in RUN/train.log, all numbers in RUN/metrics.csv.",
    "quiet": "Send the output elsewhere: > FILE. RUN/train.log has it, too.",
    "labels": "Pre-training needs no labels. --probe FOLDER watches a run by some, 'densecl evaluate' judges by them.",
    "classes": "Pre-training needs no labels, so it knows no classes.",
    "numclasses": "Pre-training needs no labels, so it knows no classes.",
}


def meant(name: str, known: Collection[str]) -> str:
    """A hint at what was meant by a flag or a setting that there is not; nothing if there is no guess.

    Args:
        name: as it was typed, a flag with its hyphens.
        known: what there is, written in the same way.
    """
    plain = name.lower().replace("-", "").replace("_", "")
    flags = name.startswith("-")
    for setting, others in NAMES.items():
        called = flag(setting) if flags else setting
        if called in known and plain in others.split():
            return f" Did you mean '{called}'?"
    if plain in ADVICE:
        return f" {ADVICE[plain]}"
    return nearest(name, known)
