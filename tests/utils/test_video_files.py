"""Clips from videos, folders, images of several planes, packages and wheels."""

import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from rpe_d2.utils import video_files
from rpe_d2.utils.video_files import frame_number, open_clip
from tests.helpers.clips import SIZE, moving_square, write_clip, write_frames, write_wheel


@pytest.fixture(scope="module")
def frames():
    return moving_square(9)[0]


def all_frames(path) -> list:
    with open_clip(str(path)) as clip:
        reader = clip.reader()
        return [reader.read(index) for index in range(len(clip))]


def test_a_video_is_read_in_any_order(frames, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.avi", frames)
    with open_clip(str(path)) as clip:
        assert len(clip) == 9 and clip.size == SIZE and clip.name == "clip"
        assert clip.frames_per_second == pytest.approx(12)
        assert list(clip.numbers) == list(range(9)) and clip.names[7] == "000007"
        reader = clip.reader()
        forward = [reader.read(index) for index in range(9)]
        # Motion JPEG is lossy.
        assert np.abs(np.array(forward) - np.array(frames, float)).mean() < 8
        for index in (4, 4, 2, 8, 7, 0):
            assert np.array_equal(reader.read(index), forward[index])
        monkeypatch.setattr(video_files, "_MOST_BYTES", 3 * frames[0].nbytes)
        backwards = list(clip.reader().read_backwards(1, 8))
        assert [index for index, _ in backwards] == list(range(8, 0, -1))
        assert all(np.array_equal(frame, forward[index]) for index, frame in backwards)


def test_two_readers_have_positions_of_their_own(frames, tmp_path):
    with open_clip(str(write_clip(tmp_path / "clip.avi", frames))) as clip:
        first, second = clip.reader(), clip.reader()
        assert np.array_equal(first.read(5), second.read(5))
        assert np.array_equal(second.read(6), first.read(6))


def test_images_of_a_folder_are_sorted_by_their_numbers(frames, tmp_path):
    folder = write_frames(tmp_path / "frames", frames, first=7)  # 7 to 15
    with open_clip(str(folder)) as clip:
        assert list(clip.numbers) == list(range(7, 16))
        assert clip.names[4] == "frame_11" and clip.frames_per_second == 25
        assert np.array_equal(clip.reader().read(4), frames[4])
        assert clip.index_of("here", 9) == 2
        with pytest.raises(ValueError, match="here has the frame number 6; allowed .* 7 to 15"):
            clip.index_of("here", 6)


def test_pages_and_frames_of_one_file(frames, tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", np.array(frames), photometric="rgb")
    assert np.array_equal(all_frames(tmp_path / "stack.tif"), frames)
    gray = [Image.fromarray(frame).convert("L") for frame in frames]
    gray[0].save(tmp_path / "clip.gif", save_all=True, append_images=gray[1:])
    read = all_frames(tmp_path / "clip.gif")
    assert len(read) == 9 and read[0].shape == (*SIZE, 3)
    Image.fromarray(frames[0]).save(tmp_path / "still.png")
    assert np.array_equal(all_frames(tmp_path / "still.png"), frames[:1])


def test_videos_in_packages_and_wheels(frames, tmp_path, monkeypatch):
    video = write_clip(tmp_path / "square.avi", frames)
    wheel = write_wheel(tmp_path / "clips-1.0-py3-none-any.whl", [video])
    expected = all_frames(video)
    for name in ("square", "square.avi"):
        assert np.array_equal(all_frames(f"{wheel}/{name}"), expected)
    site, info = tmp_path / "site", tmp_path / "site" / "clips-1.0.dist-info"
    info.mkdir(parents=True)
    write_clip(site / "square.avi", frames)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clips\nVersion: 1.0\n")
    (info / "RECORD").write_text("square.avi,,\nclips/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(site))
    assert np.array_equal(all_frames("package://clips/square"), expected)
    for path in ("package://clips/circle", f"{wheel}/circle"):
        with pytest.raises(ValueError, match="CLIP is .*circle; there are 0 .* allowed: square"):
            all_frames(path)
    with pytest.raises(ValueError, match="not installed; try pip install no-such-clips"):
        all_frames("package://no-such-clips/a")
    wheel.write_bytes(wheel.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is not a wheel that can be read"):
        all_frames(f"{wheel}/square")


def test_a_truncated_video_is_an_error(frames, tmp_path):
    path = write_clip(tmp_path / "clip.avi", frames)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"clip.avi: \d of 9 frames could be read; .* truncated"):
        all_frames(path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("absent.mp4", None, "absent.mp4: no such file or folder"),
        ("empty.mp4", b"", "is not a video that OpenCV can read"),
        ("noise.mp4", bytes(range(256)) * 40, "is not a video that OpenCV can read"),
        ("text.mp4", b"not a video", "is not a video that OpenCV can read"),
        ("cut.tif", b"II*\0\x08\0\0\0", "cut.tif: "),
    ],
)
def test_files_that_are_no_videos(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        all_frames(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
        "#EXTM3U\n#\x01\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_playlist_opens_no_other_file(frames, tmp_path, playlist):
    video = write_clip(tmp_path / "other.avi", frames)
    path = tmp_path / "clip.mp4"
    path.write_text(playlist.format(video))
    with pytest.raises(ValueError, match="is not a video that OpenCV can read"):
        all_frames(path)


def test_wrong_folders(frames, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    with pytest.raises(ValueError, match="has no images; allowed: numbered images"):
        all_frames(folder)
    Image.fromarray(frames[0]).save(folder / "a1.png")
    Image.fromarray(frames[1]).save(folder / "b01.png")
    with pytest.raises(ValueError, match="a1.png and b01.png; allowed: one image for each number"):
        all_frames(folder)
    (folder / "b01.png").unlink()
    Image.fromarray(frames[1][:40]).save(folder / "a2.png")
    with pytest.raises(ValueError, match="a2.png has 64 x 40 pixels, and a1.png 64 x 48"):
        all_frames(folder)
    Image.fromarray(frames[1]).save(folder / "b.png")
    with pytest.raises(ValueError, match="b.png has no number in its name"):
        all_frames(folder)


def test_planes_of_different_sizes(frames, tmp_path):
    with tifffile.TiffWriter(tmp_path / "stack.tif") as tiff:
        for frame in (frames[0], frames[1][:40]):
            tiff.write(frame, photometric="rgb")
    with pytest.raises(ValueError, match="frame 000001 has 64 x 40 pixels, and the first one 64"):
        all_frames(tmp_path / "stack.tif")


def test_frame_number():
    assert frame_number("clip2/shot1_frame_0012.png") == 12
    assert frame_number("1403636579763555584.png") == 1403636579763555584
    with pytest.raises(ValueError, match=re.escape("clip2/frame.png has no number")):
        frame_number("clip2/frame.png")
