"""Workers leave signals to the main process, and end with it."""

import signal
import subprocess
import sys
import textwrap


def test_workers_leave_signals_to_the_main_process():
    # Ctrl-C and the end of a cluster job reach the whole process group.
    code = """
        import functools, os, signal, subprocess, sys, time
        import numpy as np, torch
        from densecl.images.loader import make_loader
        from densecl.images.pairs import CropPairDataset
        from densecl.images.sampler import StepSampler
        from densecl.images.sources import open_source
        from densecl.views import Photometrics
        def draw(rng):
            values = [torch.tensor(1.0)] * 4 + [torch.arange(4), torch.tensor(False), torch.tensor(0.0)]
            return Photometrics(*values)
        class Items(torch.utils.data.Dataset):
            def __len__(self): return 8
            def __getitem__(self, index):
                time.sleep(0.01)
                return np.zeros((9, 9, 3), np.uint8)
        if __name__ == "__main__":
            caught = []
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, frame: caught.append(number))
            dataset = CropPairDataset(open_source(Items()), image_size=4, crop_scale=(0.2, 1.0), flip_probability=0.5,
                                      draw_photometrics=draw, seed=0)
            for step, batch in enumerate(make_loader(dataset, StepSampler(8, 2, seed=0, stop_step=40), workers=2)):
                if step in (10, 20):
                    number = "INT" if step == 10 else "TERM"
                    subprocess.run(["/bin/sh", "-c", f"trap : {number}; kill -{number} -$PPID"])
            print(step, len(caught))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, start_new_session=True
    )
    assert (result.stdout, result.stderr, result.returncode) == ("39 2\n", "", 0)


def test_a_program_ends_with_a_loader_left_over():
    code = """
        import numpy as np, torch
        from densecl.images.loader import make_loader
        from densecl.images.sampler import StepSampler
        from tests.images.patches import Patches, pairs_of
        batches = iter(make_loader(pairs_of(Patches(8)), StepSampler(8, 2, seed=0), workers=2))
        print(len(next(batches).pairs.index))
        raise KeyError("its traceback keeps them alive")
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("2\n", 1)
    assert "KeyError" in result.stderr


def test_workers_end_with_a_program_that_is_killed():
    code = """
        import os, signal, time
        import numpy as np, torch
        from densecl.images.loader import make_loader
        from densecl.images.sampler import StepSampler
        from tests.images.patches import Patches, pairs_of
        pairs = pairs_of(Patches(64), image_size=48)
        batches = iter(make_loader(pairs, StepSampler(64, 8, seed=0, stop_step=40), workers=2))
        next(batches)
        time.sleep(1)  # until the pipe is full: 55 kB a batch
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    # The workers hold the ends of these pipes that are written to, and this waits until they are closed.
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == -signal.SIGKILL
