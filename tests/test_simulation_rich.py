"Rich moments: labels that fit the picture, speech and one side in picture and truth; a rich database keeps its promises."
import numpy as np
import pytest
from PIL import Image

from aufacs_nb.facs import AU_NAMES, au_columns
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import face_truth, render_person
from aufacs_nb.simulation.face_model import action_weights, head_vertices, facemesh_vertices
from aufacs_nb.simulation.layouts import SimulationError
from aufacs_nb.simulation.rich import SPEECH, rich_levels, rich_moment, said_and_sided
from aufacs_nb.simulation.simulate import (clip_path, clip_truth, plan_clips, read_plan, read_truth, render_moment,
                                           simulate_fera17, truth_path)

LIPS = 13, 14           # FaceMesh points: the middle of the inner rims of the lips
CORNERS = 61, 291       # right and left corner of the mouth
PERSON = sample_person(3)


def moments(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rich_moment(rng) for _ in range(n)]


def points(levels, speech=None, asymmetry=0.):
    return facemesh_vertices(head_vertices(PERSON.identity, levels, asymmetry=asymmetry, speech=speech))


def test_parted_lips_are_labelled():
    gap = lambda p: np.linalg.norm(p[LIPS[0]] - p[LIPS[1]])
    rest = gap(points({}))
    for levels, speech, sides in moments(80):
        others = any(levels[au] for au in (9, 12, 17, 20, 23, 24))
        if levels[25] == 0 and not others:
            assert gap(points(levels, speech, sides)) < rest + .25, (levels, speech)


def test_every_unit_occurs_alone_and_at_every_level():
    drawn = [levels for levels, _, _ in moments(4000)]
    table = np.array([list(levels.values()) for levels in drawn])
    assert all((table == level).mean(0).min() > .005 for level in range(1, 6))
    alone = table[(table > 0).sum(1) == 1]
    assert ((alone > 0).sum(0) > 0).sum() >= 17         # AU26 parts the lips


def test_speech_moves_points_and_pixels_and_leaves_the_labels():
    assert action_weights({12: 2}) == action_weights({12: 2}, speech={})
    at_rest, said = points({12: 2}), points({12: 2}, {'mouthPucker': .8})
    assert np.ptp(said[list(CORNERS), 0]) < .95 * np.ptp(at_rest[list(CORNERS), 0])
    pictures = [render_person(PERSON, {12: 2}, size=64, speech=speech) for speech in (None, {}, {'mouthPucker': .8})]
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()
    same = [face_truth(PERSON, {12: 2}, size=64, speech=speech) for speech in (None, {'mouthPucker': .8})]
    assert np.abs(same[0] - same[1]).max() > .5


def test_one_side_of_one_unit():
    rest, lopsided = points({}), points({12: 5, 2: 5}, asymmetry={12: 1.})
    right, left = np.abs(lopsided - rest)[list(CORNERS), 1]
    assert right < .2 * left
    brows = (lopsided - rest)[[105, 334], 1]            # right and left brow
    assert brows.min() > .2 and abs(np.diff(brows)[0]) < .1
    even, dictionary = (points({12: 3, 4: 2}, asymmetry=a) for a in (.4, {12: .4, 4: .4}))
    np.testing.assert_allclose(even, dictionary, atol=1e-5)


@pytest.mark.parametrize('speech, message', [({'whistle': .5}, 'whistle'), ({'mouthPucker': 1.5}, 'outside 0–1')])
def test_impossible_speech_is_named(speech, message):
    with pytest.raises(ValueError, match=message):
        render_person(PERSON, {}, size=32, speech=speech)


def test_a_clip_is_its_moments_and_every_stretch_begins_neutral():
    clip = rich_levels(30, 5)
    for row, (levels, speech, sides) in zip(clip.to_dict('records'), moments(30, 5)):
        given = said_and_sided(row)
        neutral = not any(row[column] for column in clip.columns if column.startswith('AU'))
        if neutral:
            continue
        assert given['speech'] == speech and {a: s for a, s in given['asymmetry'].items() if s} == sides
    assert not clip.loc[[0, 12, 24]].drop(columns='light').to_numpy().any()
    assert clip['light'].tolist() == [0] * 12 + [1] * 12 + [2] * 6
    assert set(SPEECH) == {column.removeprefix('speech_') for column in clip if column.startswith('speech_')}


def test_rich_database_has_its_truth_beside_it(tmp_path):
    root = simulate_fera17(tmp_path / 'rich', train=1, valid=0, test=0, tasks=1, frames=14, size=48, seed=2,
                           media='frames', script='rich', domain='wide', progress=False)
    plan = read_plan(root)
    clip = plan_clips(plan)[0]
    truth, stored = clip_truth(plan, *clip[:3]), read_truth(truth_path(root, plan, clip))
    np.testing.assert_array_equal(stored['intensity'], truth[au_columns(AU_NAMES)])
    np.testing.assert_allclose(stored['speech'], truth[[f'speech_{name}' for name in stored['actions']]], atol=1e-6)
    assert not stored['intensity'][[0, 12]].any() and stored['light'].tolist() == [0] * 12 + [1] * 2
    frames = [np.array(Image.open(path)) for path in sorted(clip_path(root, plan, *clip).iterdir())]
    rows = truth.to_dict('records')
    np.testing.assert_array_equal(frames[7], render_moment(plan, *clip[:3], rows[7]))
    talks = next(i for i, row in enumerate(rows) if any(row[f'speech_{name}'] for name in SPEECH))
    silent = rows[talks] | {f'speech_{name}': 0. for name in SPEECH}
    assert (render_moment(plan, *clip[:3], silent) != frames[talks]).any()
    with pytest.raises(SimulationError, match='script .poor.*rich'):
        simulate_fera17(tmp_path / 'poor', train=1, valid=0, test=0, script='poor')
