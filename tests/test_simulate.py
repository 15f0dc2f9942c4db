"A simulation that is killed in the middle goes on and ends with the same bytes; readers get back what was planned."
import subprocess
import sys
import time

import numpy as np
import pytest

from aufacs_nb.databases import manifest
from aufacs_nb.facs import AU_NAMES, au_columns
from aufacs_nb.simulation.layouts import LAYOUTS, SimulationError
from aufacs_nb.simulation.simulate import (SIMULATORS, clip_path, clip_truth, plan_clips, read_plan, read_truth,
                                           truth_path)
from tools.contents import contents

SMALL = {'fera17': dict(train=1, valid=1, test=1, tasks=2, frames=6, size=64),
         'disfa': dict(subjects=4, frames=6, size=(96, 64)),
         'unbc': dict(subjects=2, sessions=2, frames=6, size=(96, 64)),
         'multipie': dict(subjects=1, size=(96, 64))}
CALL = 'import sys; from aufacs_nb.simulation.simulate import SIMULATORS; SIMULATORS[{!r}](sys.argv[1], **{!r})'


def small(database):
    return SMALL[database] | dict(seed=3, progress=False)


@pytest.fixture(scope='module')
def wholes(tmp_path_factory):
    "One small database of each kind: {name: root}."
    home = tmp_path_factory.mktemp('databases')
    return {name: SIMULATORS[name](home / name, **small(name)) for name in SMALL}


def finished(root, database):
    "Clips that stand in their place, of a simulation that may still be running."
    try:
        plan = read_plan(root)
    except SimulationError:
        return []
    return [path for clip in plan_clips(plan) if (path := clip_path(root, plan, *clip)).exists()]


@pytest.mark.parametrize('database', SMALL)
def test_killed_run_resumes_with_the_same_bytes(database, wholes, tmp_path):
    stopped = tmp_path / 'stopped'
    process = subprocess.Popen([sys.executable, '-c', CALL.format(database, small(database)), str(stopped)])
    give_up = time.monotonic() + 120
    while not finished(stopped, database) and process.poll() is None and time.monotonic() < give_up:
        time.sleep(.005)
    process.kill()
    process.wait()
    there = finished(stopped, database)
    assert 1 <= len(there) < len(plan_clips(read_plan(stopped)))
    written = there[0].stat().st_mtime_ns
    SIMULATORS[database](stopped, **small(database))
    assert contents(stopped) == contents(wholes[database])
    assert there[0].stat().st_mtime_ns == written        # a finished clip is not rendered again


def coded(database, truth):
    "What a coder of that database writes down: (N, 18), NaN where the AU is not coded; closed eyes count 1 in UNBC."
    table = truth[au_columns(AU_NAMES)].astype(float)
    table.loc[:, [c for au, c in zip(AU_NAMES, table.columns) if au not in LAYOUTS[database].aus]] = np.nan
    if database == 'unbc':
        table['AU43'] = (table['AU43'] >= 4).astype(float)
    return table.to_numpy()


@pytest.mark.parametrize('database', SMALL)
def test_reader_gives_back_the_truth(database, wholes):
    root, plan = wholes[database], read_plan(wholes[database])
    table = manifest(root, database)
    for clip in plan_clips(plan):
        path = clip_path(root, plan, *clip)
        rows = table[[p == str(path) or p.startswith(f'{path}/') for p in table['path']]].sort_values('frame')
        truth = clip_truth(plan, *clip[:3])
        np.testing.assert_array_equal(rows[au_columns(AU_NAMES)].to_numpy(float), coded(database, truth))
        assert rows['subject'].str.endswith(clip.subject).all() and (rows['partition'] == clip.partition).all()
    assert len(table) == sum(len(clip_truth(plan, *clip[:3])) for clip in plan_clips(plan))


@pytest.mark.parametrize('database', SMALL)
def test_side_car_has_every_frame(database, wholes):
    root, plan = wholes[database], read_plan(wholes[database])
    for clip in plan_clips(plan):
        truth, stored = clip_truth(plan, *clip[:3]), read_truth(truth_path(root, plan, clip))
        np.testing.assert_array_equal(stored['intensity'], truth[au_columns(AU_NAMES)])
        assert stored['vertices'].shape == (len(truth), 468, 3) and np.isfinite(stored['vertices']).all()


def test_wrong_side_car_is_named(wholes, tmp_path):
    path = tmp_path / 'half.npz'
    path.write_bytes(b'PK half')
    with pytest.raises(SimulationError, match='half.npz'):
        read_truth(path)
