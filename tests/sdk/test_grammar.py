import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtryon.errors import ProtocolError, Reason
from vtryon.events import Chunk
from vtryon.types import EncodedImage, Payload, PayloadKind
from vtryon.wire.grammar import MAX_CHUNK_BYTES, PayloadCursor, Requests, Responses
from vtryon.wire.payloads import Assembler, Outgoing, chunks, cut

LETTERS = {
    "s": "start",
    "h": "half-close",
    "a": "accepted",
    "q": "queued",
    "p": "progress",
    "v": "preview",
    "o": "output",
    "f": "finished",
}


def image(size: int) -> Payload:
    return Payload(PayloadKind.IMAGE, size, image=EncodedImage())


def holds(direction: Requests | Responses, word: str) -> bool:
    """Whether a word of messages, c for a chunk of one byte, is a sentence of the grammar."""
    declared = image(max(1, word.count("c")))
    offset = 0
    try:
        for letter in word:
            if letter == "c":
                direction.chunk(0, offset, 1)
                offset += 1
            elif LETTERS[letter] == direction.declares:
                direction.declare([declared])
            else:
                direction.message(LETTERS[letter])
    except ProtocolError:
        return False
    return direction.ended


@given(st.text("schaqpvof", max_size=9))
def test_the_machine_takes_exactly_the_words_of_the_request_grammar(word: str) -> None:
    assert holds(Requests(), word) == bool(re.fullmatch("sc+h", word))


@given(
    st.one_of(
        st.text("schaqpvof", max_size=9), st.from_regex("a[qpv]{0,4}oc{1,4}f", fullmatch=True)
    )
)
def test_the_machine_takes_exactly_the_words_of_the_response_grammar(word: str) -> None:
    assert holds(Responses(), word) == bool(re.fullmatch("a[qpv]*oc+f", word))


def test_the_error_says_what_could_have_come() -> None:
    responses = Responses()
    with pytest.raises(ProtocolError, match="queued where only accepted can come"):
        responses.message("queued")


def test_an_early_end_says_how_much_is_missing() -> None:
    requests = Requests()
    requests.declare([image(10)])
    requests.chunk(0, 0, 4)
    with pytest.raises(ProtocolError, match="payload 0 has 4 of 10 bytes") as caught:
        requests.message("half-close")
    assert caught.value.reason is Reason.STREAM_INCOMPLETE


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ((0, 5, 1), "offset 5 where payload 0 goes on at 4"),
        ((0, 0, 1), "offset 0 where payload 0 goes on at 4"),
        ((1, 0, 1), "payload 1 at offset 0 where payload 0"),
        ((0, 4, 0), "a chunk of 0 bytes"),
        ((0, 4, MAX_CHUNK_BYTES + 1), "takes 1 to"),
        ((0, 4, 7), "has 6 left"),
    ],
)
def test_gaps_overlaps_reorder_and_excess_are_told_apart(chunk: tuple, message: str) -> None:
    cursor = PayloadCursor([image(10), image(3)])
    cursor.advance(0, 0, 4)
    with pytest.raises(ProtocolError, match=message):
        cursor.advance(*chunk)


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=4), st.integers(1, 100))
async def test_what_is_cut_is_put_together_again(payloads: list[bytes], size: int) -> None:
    outgoing = [Outgoing(image(len(data)), data) for data in payloads]
    declared = [item.payload for item in outgoing]
    assembler, cursor = Assembler(declared), PayloadCursor(declared)
    async for chunk in chunks(outgoing, size):
        cursor.advance(chunk.payload, chunk.offset, len(chunk.data))
        assembler.add(chunk)
    assert cursor.complete
    assert assembler.buffers == payloads


async def test_bytes_that_come_in_pieces_go_on_in_the_same_pieces() -> None:
    async def pieces():
        yield b"abc"
        yield b"defgh"

    sent = [chunk async for chunk in chunks([Outgoing(image(8), pieces())], 2)]
    assert sent == [Chunk(0, 0, b"abc"), Chunk(0, 3, b"defgh")]


def test_cutting_keeps_offsets() -> None:
    assert list(cut(b"abcde", 2)) == [(0, b"ab"), (2, b"cd"), (4, b"e")]
