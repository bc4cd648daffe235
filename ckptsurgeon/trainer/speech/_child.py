"""Synthesises speech with espeak-ng in a separate process; run as a script, it imports only the standard library.

espeak-ng keeps state between utterances (the phase and the flutter of the voice), and no call resets this state. So
only a new process makes the same bytes again. The noise of breath comes from two random generators: one in espeak-ng,
by default seeded with the time, and one in the C library. This script seeds both before each utterance.

Arguments: the paths of espeak-ng's library and of its data. Reads a JSON list of [text, voice, speed, pitch] from
stdin. Writes the sampling rate, then for each utterance the number of bytes and the bytes: 16-bit samples, one channel.
The sampling rate and the numbers of bytes are 32-bit integers.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: speaking returns when all samples were delivered
_NO_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT
_RATE, _PITCH = 1, 3  # espeakRATE, in words a minute; espeakPITCH, 0 to 100
_CHARACTERS, _UTF8 = 1, 1  # POS_CHARACTER, espeakCHARS_UTF8


def main(library: str, data: str) -> None:
    """Read utterances from stdin, speak them with espeak-ng, and write their samples to stdout.

    ``library`` is the path of espeak-ng's library, ``data`` is the path of its data.
    """
    espeak, chance = ctypes.CDLL(library), ctypes.CDLL(None)
    espeak.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    number, text, nothing = ctypes.c_uint, ctypes.c_char_p, ctypes.c_void_p
    espeak.espeak_Synth.argtypes = [text, ctypes.c_size_t, number, ctypes.c_int, number, number, nothing, nothing]
    espeak.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    samples: list[bytes] = []

    def keep(wave: int | None, count: int, events: int | None) -> int:
        if wave and count > 0:
            samples.append(ctypes.string_at(wave, 2 * count))
        return 0

    # Kept in a variable, because ctypes does not keep the callback alive.
    callback = ctypes.CFUNCTYPE(ctypes.c_int, nothing, ctypes.c_int, nothing)(keep)

    rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _NO_EXIT)
    if rate <= 0:
        sys.exit("espeak-ng does not start")
    espeak.espeak_SetSynthCallback(callback)
    sys.stdout.buffer.write(struct.pack("<I", rate))
    for text_, voice, speed, pitch in json.load(sys.stdin):
        if espeak.espeak_SetVoiceByName(voice.encode()) != 0:
            sys.exit(f"espeak-ng has no voice {voice}")
        espeak.espeak_ng_SetRandSeed(1)
        chance.srand(1)
        espeak.espeak_SetParameter(_RATE, speed, 0)
        espeak.espeak_SetParameter(_PITCH, pitch, 0)
        spoken = text_.encode() + b"\0"
        samples.clear()
        if espeak.espeak_Synth(spoken, len(spoken), 0, _CHARACTERS, 0, _UTF8, None, None) != 0:
            sys.exit(f"espeak-ng cannot say {text_!r}")
        wave = b"".join(samples)
        sys.stdout.buffer.write(struct.pack("<I", len(wave)) + wave)


if __name__ == "__main__":
    main(*sys.argv[1:])
