"Rich moments: labels that fit the picture, speech, one side and things in picture and truth; a rich database."
import numpy as np
import pytest
from PIL import Image

from aufacs_nb.facs import AU_NAMES, au_columns
from aufacs_nb.geometry.rotation import rotation
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import face_truth, render_person, wrinkled_relief
from aufacs_nb.simulation.face_model import action_weights, facemesh_vertices, head_vertices
from aufacs_nb.simulation.layouts import SimulationError
from aufacs_nb.simulation.rich import SPEECH, rich_levels, rich_moment, said_and_sided
from aufacs_nb.simulation.simulate import (clip_path, clip_truth, make_plan, plan_clips, read_plan, read_truth,
                                           render_moment, simulate_fera17, truth_path)
from aufacs_nb.simulation.tension import skin_strain, tension_relief
from aufacs_nb.simulation.things import glasses, hand, hidden_points, make_things


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
    moving = [column for column in clip if column.startswith(('AU', 'speech_', 'side_', 'smear_'))]
    assert not clip.loc[[0, 12, 24], moving].to_numpy().any() and not any(clip.loc[[0, 12, 24], 'held'])
    assert (clip.groupby('light')['worn_seed'].nunique() == 1).all()
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
    bare = [not (w or h) for w, h in zip(stored['worn'], stored['held'])]
    assert not stored['hidden'][bare].any() and stored['hidden'][stored['held'] != ''].any(1).all()
    assert not clip_truth({**plan, 'parameters': plan['parameters'] | {'without': 'things'}}, *clip[:3])['held'].any()
    with pytest.raises(SimulationError, match='script .poor.*rich'):
        simulate_fera17(tmp_path / 'poor', train=1, valid=0, test=0, script='poor')


def test_a_thing_hides_what_lies_behind_it_and_nothing_else():
    room = dict(size=96, yaw=20)
    points = face_truth(PERSON, {12: 3}, **room)
    for at, hidden_ones, free in (('mouth', (13, 14), (10, 151)), ('chin', (152, 175), (13, 9))):
        things = hand(PERSON, at, angle=60., hold=4 if at == 'chin' else 1)
        hidden = hidden_points(points, things, **room)
        assert hidden[list(hidden_ones)].all() and not hidden[free[-1]], at
        plain, covered = (render_person(PERSON, {12: 3}, things=t, **room) for t in ((), things))
        x, y = points[list(hidden_ones), :2].astype(int).T
        assert (plain[y, x] != covered[y, x]).any(-1).all(), at
    assert not hidden_points(points, [thing for thing in glasses(PERSON, 1) if thing.name == 'lenses'], **room).any()
    dark = hidden_points(points, glasses(PERSON, 1, dark=True), **room)
    assert dark[[159, 145]].all() and not dark[[13, 152]].any()        # lids, not lips and chin


def test_smear_moves_no_light_and_lenses_let_it_through():
    still, smeared = (render_person(PERSON, {}, size=96, motion=way).astype(float) for way in ((0, 0), (.8, 0)))
    assert abs(still.mean() - smeared.mean()) < 1 and np.abs(still - smeared).max() > 20
    across, down = (np.abs(np.diff(smeared, axis=axis)).mean() for axis in (1, 0))
    assert across < .8 * np.abs(np.diff(still, axis=1)).mean() and across < down
    x, y = face_truth(PERSON, {}, size=96)[159, :2].astype(int)         # an upper lid
    eye = [render_person(PERSON, {}, size=96, things=glasses(PERSON, 1, dark))[y, x].mean() for dark in (False, True)]
    assert abs(eye[0] - still[y, x].mean()) < 60 and eye[1] < .8 * eye[0]


def test_unknown_things_are_named():
    with pytest.raises(ValueError, match='umbrella'):
        make_things(PERSON, held='umbrella')
    with pytest.raises(ValueError, match='knee'):
        hand(PERSON, 'knee')


def test_tension_folds_compressed_skin_only_and_whichever_unit_compresses_it():
    rest, head = (head_vertices(PERSON.identity, aus) for aus in ({}, {9: 5}))
    np.testing.assert_allclose(skin_strain(rest, rest * np.float32([.9, 1, 1]))[32, 128], [-.1, 0, 0], atol=.02)
    np.testing.assert_allclose(skin_strain(rest, rest * np.float32([1, .9, 1]))[32, 128], [0, 0, -.1], atol=.02)
    np.testing.assert_array_equal(tension_relief(PERSON, {}, rest), PERSON.relief)
    scowl = tension_relief(PERSON, {9: 5}, head) - wrinkled_relief(PERSON, {9: 5})
    assert np.abs(scowl[100:180, 480:544]).max() > .3          # AU9 furrows the brow
    wider = rest * np.float32([1.1, 1, 1])                      # stretched skin folds no lines that cross the way
    narrower = rest * np.float32([.9, 1, 1])
    folds = [np.abs(tension_relief(PERSON, {}, posed) - PERSON.relief).sum() for posed in (wider, narrower)]
    assert folds[0] < .3 * folds[1]


def test_tension_works_in_any_pose_and_is_off_unless_asked():
    room = dict(size=96, yaw=25, pitch=5)
    usual = render_person(PERSON, {9: 5, 12: 2}, **room)
    by_unit, tense = (render_person(PERSON, {9: 5, 12: 2}, wrinkles=w, **room) for w in (True, tension_relief))
    assert (usual == by_unit).all() and (usual != tense).any()
    head = head_vertices(PERSON.identity, {9: 5})
    turned = head @ np.float32(rotation(40, 10, 5)).T
    np.testing.assert_allclose(tension_relief(PERSON, {9: 5}, turned), tension_relief(PERSON, {9: 5}, head), atol=1e-3)
    plans = [make_plan('fera17', train=1, valid=0, test=0, **more) for more in ({}, {'wrinkles': 'tension'})]
    assert 'wrinkles' not in plans[0]['parameters'] and plans[1]['parameters']['wrinkles'] == 'tension'
