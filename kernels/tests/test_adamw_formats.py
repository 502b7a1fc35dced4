"""Formats and random bits against closed forms: every one of the 2¹⁶ random words is tried where a mean is claimed."""

import math

import pytest
import torch

from efftrain_kernels._optimizer import formats

WORDS = torch.arange(1 << 16)
SPECIAL = torch.tensor(
    [0x7F800000, -0x800000, 0x7FC00000, 0x7FFFFFFF, -1, 0x7F800001, 0x7F7FFFFF, -0x800001, 0, -0x80000000, 1],
    dtype=torch.int32,
).view(torch.float32)


def numbers(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(1 << 31), 1 << 31, (count,), generator=generator).to(torch.int32).view(torch.float32)
    return torch.cat([SPECIAL, bits])


def test_mix_is_the_published_hash():
    def lowbias32(x):  # https://github.com/skeeto/hash-prospector
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    words = [0, 1, 2, 0xFFFFFFFF, 0x80000000, 12345678]
    assert [formats.mix(x) for x in words] == formats.mix(torch.tensor(words)).tolist() == [lowbias32(x) for x in words]


def test_hashes_are_bijections_of_a_sample():
    words = torch.arange(1 << 20)
    assert len(formats.mix(words).unique()) == len(formats.remix(words).unique()) == 1 << 20


def test_random_bits_are_even_and_do_not_repeat_from_step_to_step():
    like = torch.empty(1 << 16)
    key = formats.tensor_key(0, 0)
    first, second = formats.random_words(like, key, 1, 0)
    other, _ = formats.random_words(like, key, 2, 0)
    # A mean of n uniform words is within 5 standard deviations, 5 / √(12 n), of one half; √n bits of agreement too.
    bound = 5 / math.sqrt(12 * len(first))
    for half in (first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16, other >> 16):
        assert abs(half.double().mean() / 65536 - 0.5) < bound
    for left, right in ((first, second), (first, other), (first[:-1], first[1:])):
        agreeing = (~(left ^ right) & 0xFFFFFFFF).bitwise_and(1).double().mean()
        assert abs(agreeing - 0.5) < 5 / math.sqrt(4 * len(left))
        pair = torch.stack([(left & 0xFFFF).double(), (right & 0xFFFF).double()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 5 / math.sqrt(len(left))


def test_random_words_count_elements_of_the_whole_in_memory_order():
    whole, _ = formats.random_words(torch.empty(40), 7, 3, 0)
    part, _ = formats.random_words(torch.empty(5, 2), 7, 3, 30)
    assert torch.equal(part.flatten(), whole[30:])
    turned, _ = formats.random_words(torch.empty(8, 5).t(), 7, 3, 0)
    assert torch.equal(turned.t().flatten(), whole)
    late, _ = formats.random_words(torch.empty(2), 7, 3, (1 << 32) - 1)
    assert late[1] == whole[0]


@pytest.mark.parametrize(
    ("shape", "strides", "dense"),
    [((3, 4), (4, 1), True), ((3, 4), (1, 3), True), ((3, 4), (5, 1), False), ((2, 1, 3), (3, 99, 1), True),
     ((3, 4), (0, 1), False), ((), (), True), ((0, 3), (9, 1), True)],
)  # fmt: skip
def test_dense(shape, strides, dense):
    assert formats.is_dense(torch.empty(200).as_strided(shape, strides)) == dense


@pytest.mark.parametrize("x", [1.0, 1.0001, -3.14159, 1e-30, 65504.0, -1.17549435e-38])
def test_bfloat16_rounds_to_a_neighbour_and_is_right_on_the_mean(x):
    value = torch.full((1 << 16,), x)
    rounded = formats.stochastic_bfloat16(value, WORDS).double()
    assert len(rounded.unique()) <= 2
    assert rounded.mean().item() == value[0].double().item()  # exactly: the words are all the bits that are lost


def test_bfloat16_keeps_what_it_can_express_and_what_is_no_number():
    exact = numbers(1000).bfloat16().float()
    rounded = formats.stochastic_bfloat16(exact, torch.full_like(exact, 0xFFFF, dtype=torch.int64))
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0, equal_nan=True)
    special = formats.stochastic_bfloat16(SPECIAL[:6], torch.full((6,), 0xFFFF)).float()
    torch.testing.assert_close(special, SPECIAL[:6], rtol=0, atol=0, equal_nan=True)


def test_split_restores_every_bit():
    x = numbers(100_000)
    high, low = formats.split(x)
    restored = formats.join(high, low)
    real = ~x.isnan()
    assert torch.equal(restored[real].view(torch.int32), x[real].view(torch.int32))
    assert restored[~real].isnan().all()


def test_split_shows_the_nearest_bfloat16():
    x = numbers(100_000)
    high, _ = formats.split(x)
    assert torch.equal(high.isnan(), x.isnan())
    real = x[~x.isnan()]
    tie = (real.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(high[~x.isnan()][~tie], real[~tie].bfloat16())
    up = torch.tensor([0x3F808000], dtype=torch.int32).view(torch.float32)  # torch rounds this tie down, to even
    assert formats.split(up)[0].view(torch.int16).item() == 0x3F81


FIRST = (formats.encode_first, formats.decode_first, lambda c: math.copysign((c / 127) ** 2, c), range(-127, 128))
SECOND = (formats.encode_second, formats.decode_second, lambda c: (c / 255) ** 4, range(256))


@pytest.mark.parametrize(("encode", "decode", "value", "codes"), [FIRST, SECOND])
@pytest.mark.parametrize("scale", [1.0, 3e-7, 7e20])
def test_every_code_has_its_value_and_is_kept_by_any_rounding(encode, decode, value, codes, scale):
    kept = torch.tensor(list(codes), dtype=torch.int8 if codes[0] < 0 else torch.uint8)
    decoded = decode(kept, torch.tensor([scale]))
    expected = torch.tensor([scale * value(c) for c in codes], dtype=torch.float64)
    torch.testing.assert_close(decoded.double(), expected, rtol=5e-7, atol=0.0)
    for random in (0x10, formats.HALF, 0xFFEF):  # rounding errors are below 2⁻¹² of a step of the codes
        again, scales = encode(decoded, torch.full(decoded.shape, random))
        assert torch.equal(again, kept)
        torch.testing.assert_close(scales.item(), scale, rtol=3e-7, atol=0.0)


@pytest.mark.parametrize(("encode", "decode", "value", "codes"), [FIRST, SECOND])
@pytest.mark.parametrize("x", [0.7, 1e-4, 0.9999])
def test_eight_bits_are_right_on_the_mean(encode, decode, value, codes, x):
    # Blocks of x with another word each, and one element of magnitude 1, which sets the scale.
    blocks, random = torch.full((258, 256), x), torch.zeros(258, 256, dtype=torch.int64)
    blocks[:, 0] = 1.0
    random[:, 1:] = torch.cat([WORDS, WORDS[:254]]).view(258, 255)
    codes_of_x, scales = encode(blocks, random)
    decoded = decode(codes_of_x, scales)[:, 1:].flatten()[: 1 << 16].double()
    gap = (decoded.max() - decoded.min()).item()
    assert len(decoded.unique()) == 2
    # Half a word of resolution, and float32's rounding of x · 255⁴ where that is larger.
    assert abs(decoded.mean().item() - float(torch.tensor(x))) <= gap / 65536 + 2**-22 * x
    assert codes[0] == 0 or torch.equal(encode(-blocks, random)[0], -codes_of_x)


def test_a_second_moment_above_zero_is_never_zero():
    x = torch.zeros(512)
    x[0], x[1], x[256], x[257] = 1.0, 1e-38, 1e-38, 1e-44
    codes, scales = formats.encode_second(x, torch.full((512,), 0xFFFF))
    assert codes[[0, 1, 256, 257]].min() >= 1
    assert codes.count_nonzero() == 4
    assert formats.decode_second(codes, scales).isfinite().all()


def test_blocks_follow_memory_and_the_last_may_be_short():
    x = torch.arange(300.0).view(20, 15).t()
    codes, scales = formats.encode_first(x, formats.HALF)
    assert codes.stride() == x.stride()
    assert scales.tolist() == [255.0, 299.0]
    # The nearest code errs by half a step: (2c + 1) / 127² / 2 of the scale at most, about 1 / 127.
    assert (formats.decode_first(codes, scales) - x).abs().max() <= 299 / 127


def test_a_block_with_nan_says_so():
    x = torch.ones(512)
    x[3] = float("nan")
    assert formats.encode_first(x, formats.HALF)[1].isnan().tolist() == [True, False]
