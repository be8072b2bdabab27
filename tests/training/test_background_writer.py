import threading
import time

import numpy as np
import pytest

from keras_cdiff.training.checkpoint import CheckpointFolder
from keras_cdiff.training.checkpoint_callback import BackgroundWriter

pytestmark = pytest.mark.backend_free


def test_a_background_writer_saves_one_at_a_time_and_reports_errors(tmp_path):
    folder, release, order = CheckpointFolder(tmp_path), threading.Event(), []
    save = folder.save

    def slow(step, arrays, metadata):
        assert release.wait(600)
        order.append((step, threading.current_thread() is threading.main_thread()))
        save(step, arrays, metadata)

    folder.save = slow
    with BackgroundWriter(folder) as writer:
        writer.save(1, {"a": np.zeros(2)}, {})
        assert folder.steps() == []  # it returned while the thread still waits
        threading.Timer(0.05, release.set).start()
        writer.save(2, {"a": np.zeros(2)}, {})  # waits for the first
        assert 1 in folder.steps()
        writer.wait()
        assert folder.steps() == [1, 2]
        assert writer.file(2).exists()
        assert order == [(1, False), (2, False)]

        writer.check()
        writer.save(3, {"a": np.array([None])}, {})
        with pytest.raises(ValueError, match="dtype object"):
            writer.save(4, {"a": np.zeros(2)}, {})
        writer.save(4, {"a": np.array([None])}, {})
        time.sleep(0.2)
        with pytest.raises(ValueError, match="dtype object"):
            writer.check()
        writer.save(5, {"a": np.zeros(2)}, {})
        assert writer.steps() == [1, 2, 5]  # it has waited
    assert folder.steps() == [1, 2, 5]
    with pytest.raises(ValueError, match="dtype object"), BackgroundWriter(folder) as writer:
        writer.save(6, {"a": np.array([None])}, {})
