"""Small random models of the real library: loss and every gradient as with the attention that they come with."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.17")

from efftrain_kernels import integrations  # noqa: E402

VOCABULARY, PAD, TOKENS = 61, 0, 17
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "pad_token_id": PAD,
}
GROUPED = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

MODELS = {  # what is compared, and the attention that the library itself has for it
    "llama": ("LlamaForCausalLM", GROUPED, "sdpa"),
    "mistral": ("MistralForCausalLM", GROUPED | {"sliding_window": 5}, "sdpa"),
    "gemma2": (
        "Gemma2ForCausalLM",
        GROUPED | {"sliding_window": 6, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 5},
        "eager",  # sdpa has no soft cap
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        GROUPED | {"sliding_window": 6, "num_local_experts": 2, "num_experts_per_tok": 2, "attention_dropout": 0.0},
        "eager",  # sdpa has no sinks
    ),
    "deepseek_v3": (  # keys of 12, values of 8
        "DeepseekV3ForCausalLM",
        SMALL | {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8}
        | {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 2},
        "sdpa",
    ),
    "gpt2": (  # as many key heads as query heads, positions that are learned
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4}
        | {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
        "sdpa",
    ),
    "bert": ("BertForMaskedLM", SMALL | NO_DROPOUT | {"num_attention_heads": 4}, "sdpa"),
    "modernbert": (
        "ModernBertForMaskedLM",
        SMALL | {"num_attention_heads": 4, "local_attention": 6, "global_attn_every_n_layers": 2},
        "sdpa",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def registered():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that threads would only wait for each other
    integrations.register_with_transformers()
    yield
    torch.set_num_threads(threads)


def build(name, implementation, **changes):
    architecture, settings, _ = MODELS[name]
    model_class = getattr(transformers, architecture)
    torch.manual_seed(0)
    config = model_class.config_class(**(settings | changes))
    config._experts_implementation = "eager"  # the grouped product has no float64
    model = model_class._from_config(config, attn_implementation=implementation)
    for parameter in model.parameters():
        if parameter.ndim < 2:  # sinks and biases begin at 0 or unset
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model


def padded(side, *, lengths=(17, 11, 6)):
    torch.manual_seed(1)
    mask = torch.zeros(len(lengths), TOKENS, dtype=torch.int64)
    for row, length in zip(mask, lengths, strict=True):
        row[slice(0, length) if side == "right" else slice(TOKENS - length, TOKENS)] = 1
    ids = torch.randint(1, VOCABULARY, mask.shape) * mask
    first = mask.cumsum(1) == 1  # padding would predict it
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill((mask == 0) | first, -100)}


def packed(*, lengths=(7, 1, 9)):
    torch.manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (1, sum(lengths)))
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    labels = ids.masked_fill(position_ids == 0, -100)
    return {"input_ids": ids, "position_ids": position_ids, "labels": labels, "use_cache": False}


def offsets(lengths=(7, 1, 9)):
    cu_seqlens = torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)
    longest = {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, **longest}


def one_by_one(batch):
    """The sequences of a padded or packed batch, each as a batch of its own that needs no mask."""
    rows, tokens = batch["input_ids"].shape
    positions = batch.get("position_ids", torch.arange(tokens, device=batch["input_ids"].device).expand(rows, -1))
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    sequence = (positions == 0).cumsum(1)
    for row in range(rows):
        for number in sequence[row].unique():
            chosen = (sequence[row] == number) & real[row]
            yield {
                "input_ids": batch["input_ids"][row, chosen][None],
                "labels": batch["labels"][row, chosen][None],
                "position_ids": positions[row, chosen][None],
            }


def gradients(model):
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def loss_and_gradients(model, batch):
    loss = model(**batch).loss
    loss.backward()
    return gradients(model) | {"loss": loss.detach().double()}


def summed(model, batch):
    """Loss and gradients of a batch from its sequences one by one, so that no mask of anybody's has a part in it."""
    predicted, total = (batch["labels"] != -100).sum(), 0.0
    for single in one_by_one(batch):
        count = (single["labels"] != -100).sum()
        if count:
            loss = model(**single).loss * count / predicted
            loss.backward()
            total += loss.detach().double()
    return gradients(model) | {"loss": total}


def truth(model, batch):
    return summed(copy.deepcopy(model).double(), batch)


def assert_as_exact(ours, stock, exact):
    """Our error against float64 is at most twice the library's own, and the rounding of the largest to float32."""
    assert ours.keys() == stock.keys() == exact.keys()
    largest = max(x.abs().max() for name, x in exact.items() if name != "loss")
    for name, x in exact.items():
        rounding = 2 * torch.finfo(torch.float32).eps * (x.abs() if name == "loss" else largest)
        assert (ours[name] - x).abs().max() <= 2 * (stock[name] - x).abs().max() + rounding, name


def compare(name, batch, *, ours_alone=None):
    stock, ours = build(name, MODELS[name][2]), build(name, "efftrain")
    exact = truth(stock, batch)
    # gpt_oss makes its masks without position_ids: with its own attention, packed sequences would see each other.
    crossing = name == "gpt_oss" and "position_ids" in batch
    theirs = summed(stock, batch) if crossing else loss_and_gradients(stock, batch)
    assert all((theirs[key] - x).abs().max() < 1e-5 for key, x in exact.items())  # else it would be no measure
    assert_as_exact(loss_and_gradients(ours, batch | (ours_alone or {})), theirs, exact)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_padded_batches(name, side):
    compare(name, padded(side))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_batches_without_padding(name):
    compare(name, padded("right", lengths=(17, 17)))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("given", ["position_ids", "cu_seq_lens"])
def test_packed_batches(name, given):
    compare(name, packed(), ours_alone=offsets() if given == "cu_seq_lens" else None)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_position_ids_that_start_again_in_spite_of_a_cache(name):
    # The library looks for packing in its masks only where there is no cache, and makes one unless told not to.
    compare(name, packed(), ours_alone={"use_cache": True})


def test_chunks_are_sequences():
    # Llama 4 attends in chunks; the rows split where the predicate of the mask does.
    config = transformers.Llama4TextConfig(
        **GROUPED, intermediate_size_mlp=48, attention_chunk_size=5, num_local_experts=2, use_qk_norm=False
    )
    config.layer_types = ["chunked_attention", "full_attention"]
    models = []
    for implementation in ("sdpa", "efftrain"):
        torch.manual_seed(0)
        models.append(transformers.Llama4ForCausalLM._from_config(config, attn_implementation=implementation))
    batch = padded("right", lengths=(17, 17))
    with torch.no_grad():
        theirs, ours = (model(**batch, use_cache=False).logits for model in models)
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="attention in chunks of 5 tokens together with padding"):
        models[1](**padded("right"))


@pytest.mark.parametrize("length", [9, 17])  # shorter than the encoder's text, and just as long
def test_cross_attention_with_a_padded_encoder(length):
    settings = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = transformers.BartConfig(vocab_size=VOCABULARY, dropout=0.0, **settings, **heads)
    results = []
    batch = padded("right") | {"labels": torch.arange(3 * length).view(3, length)}
    for implementation in ("sdpa", "efftrain"):
        torch.manual_seed(0)
        model = transformers.BartForConditionalGeneration._from_config(config, attn_implementation=implementation)
        results.append(loss_and_gradients(model, batch))
    theirs, ours = results
    assert len(ours) > 20
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_generation_with_a_cache(name):
    model, stock = build(name, "efftrain").eval(), build(name, MODELS[name][2]).eval()
    prompt = {key: padded("left")[key] for key in ("input_ids", "attention_mask")}
    settings = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    written = model.generate(**prompt, **settings)
    assert written.shape == (3, TOKENS + 9)
    assert written.equal(stock.generate(**prompt, **settings))


def test_without_the_mask_interface_padding_would_be_attended_to():
    # What a registration of the attention alone gives: the library then makes no mask at all.
    transformers.AttentionInterface.register("half", transformers.AttentionInterface()["efftrain"])
    batch = padded("left")
    loss = {name: build("llama", name)(**batch).loss.item() for name in ("half", "efftrain", "sdpa")}
    assert loss["efftrain"] == pytest.approx(loss["sdpa"], rel=1e-6)
    assert abs(loss["half"] - loss["sdpa"]) > 1e-5 * loss["sdpa"]
    del transformers.AttentionInterface._global_mapping["half"]


def test_padding_is_cut_out_once_a_batch_and_comes_back_as_zeros(monkeypatch):
    seen = []
    attend_packed = integrations.transformers.attend_packed

    def recorded(q, k, v, packing, **settings):
        out = attend_packed(q, k, v, packing, **settings)
        seen.append((packing, out))
        return out

    monkeypatch.setattr(integrations.transformers, "attend_packed", recorded)
    batch = padded("left")
    build("llama", "efftrain")(**batch)
    (first, out), (second, _) = seen
    assert first is second
    assert first.cu_seqlens_q.tolist() == [0, 17, 28, 34]
    assert out[batch["attention_mask"] == 0].abs().sum() == 0
    assert out[batch["attention_mask"] == 1].abs().amin(dim=(1, 2)).min() > 0


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_and_autocast():
    stock, ours, batch = build("mistral", "sdpa"), build("mistral", "efftrain"), padded("left")
    exact = truth(stock, batch)
    for model in (stock, ours):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = loss_and_gradients(ours, batch), loss_and_gradients(stock, batch)
    loss = exact.pop("loss")
    for results in (found, theirs):  # one number, whose error is a matter of luck: within one rounding to bfloat16
        torch.testing.assert_close(results.pop("loss"), loss, rtol=2**-9, atol=0)
    assert_as_exact(found, theirs, exact)


DYNAMO_LOOKS_AT_GRADIENTS = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.mark.slow
@DYNAMO_LOOKS_AT_GRADIENTS
@pytest.mark.parametrize("batch", [padded("left"), packed() | offsets()], ids=["padded", "packed"])
def test_torch_compile(batch):
    plain, compiled = (build("llama", "efftrain", num_hidden_layers=1) for _ in range(2))
    torch._dynamo.reset()
    expected = loss_and_gradients(plain, batch)
    found = loss_and_gradients(torch.compile(compiled, backend="aot_eager"), batch)
    assert_as_exact({name.removeprefix("_orig_mod."): x for name, x in found.items()}, expected, expected)


@pytest.mark.slow
@DYNAMO_LOOKS_AT_GRADIENTS
def test_packed_position_ids_alone_are_refused_where_their_values_cannot_be_read():
    torch._dynamo.reset()
    model = torch.compile(build("llama", "efftrain"), backend="aot_eager")
    with pytest.raises(RuntimeError, match="pass cu_seq_lens_q and cu_seq_lens_k as well"):
        model(**packed() | {"use_cache": True})


class TestRefusals:
    def test_dropout(self):
        model = build("llama", "efftrain", attention_dropout=0.1).train()
        with pytest.raises(ValueError, match=r"LlamaAttention asks for attention dropout 0\.1"):
            model(**padded("left"))
        model.eval()(**padded("left"))

    def test_masks_made_elsewhere(self):
        mask = torch.ones(3, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
        with pytest.raises(ValueError, match=r"attention_mask \[3, 1, 17, 17\] reaches LlamaAttention ready made"):
            build("llama", "efftrain")(**padded("left") | {"attention_mask": mask})

    def test_a_predicate_of_the_models_own(self):
        config = build("llama", "efftrain").config
        see_all = lambda batch, head, q, kv: q >= 0  # noqa: E731
        embeds = torch.zeros(1, 4, 32)
        with pytest.raises(ValueError, match="a mask of its own"):
            transformers.masking_utils.create_causal_mask(config, embeds, None, None, or_mask_function=see_all)

    def test_blocks_that_see_ahead(self):
        config = build("llama", "efftrain").config
        blocks, embeds = torch.tensor([[-1, 0, 0, -1]]), torch.zeros(1, 4, 32)
        with pytest.raises(ValueError, match="blocks of tokens see ahead"):
            transformers.masking_utils.create_causal_mask(config, embeds, None, None, block_sequence_ids=blocks)

    def test_a_static_cache(self):
        prompt = {"input_ids": padded("left")["input_ids"][:1], "max_new_tokens": 2, "cache_implementation": "static"}
        with pytest.raises(ValueError, match="as in a static cache; use a cache that grows"):
            build("llama", "efftrain").eval().generate(**prompt)

    def test_a_bias_on_the_scores(self):
        config = transformers.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
        ids = padded("left")["input_ids"]
        with pytest.raises(ValueError, match="passes position_bias, a bias on the scores"):
            transformers.T5EncoderModel._from_config(config, attn_implementation="efftrain").eval()(input_ids=ids)

    def test_padding_inside_a_window(self):
        batch = padded("left")
        batch["attention_mask"][0, 8] = 0
        build("llama", "efftrain")(**batch)
        with pytest.raises(ValueError, match="padding between real tokens, under a window"):
            build("mistral", "efftrain")(**batch)

    def test_padding_and_offsets(self):
        with pytest.raises(ValueError, match="attention_mask has padding and cu_seq_lens_q is given"):
            build("llama", "efftrain")(**padded("left"), **offsets((17, 17, 17)))

    @pytest.mark.parametrize("name", ["sdpa", "eager", "flash_attention_2", "my_flash", "org/kernel"])
    def test_names_that_belong_to_others(self, name):
        with pytest.raises(ValueError, match="belongs to transformers or to another library"):
            integrations.register_with_transformers(name)


def test_registering_again_changes_the_backend():
    integrations.register_with_transformers(backend="sdpa")
    with pytest.raises(ValueError, match="backend 'sdpa' cannot express"):
        build("llama", "efftrain")(**padded("left"))
    integrations.register_with_transformers()
    build("llama", "efftrain")(**padded("left"))


@pytest.mark.parametrize(
    ("name", "batch"),
    [("mistral", padded("left")), ("gpt_oss", packed() | offsets())],
    ids=["mistral-padded", "gpt_oss-packed"],
)
def test_the_kernels_themselves(name, batch):
    # In Triton's interpreter where there is no GPU: groups, causal order, a window, and in gpt_oss sinks.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = {key: x.to(device) if torch.is_tensor(x) else x for key, x in batch.items()}
    integrations.register_with_transformers("efftrain-triton", backend="triton")
    kinds = (MODELS[name][2], "efftrain-triton")
    stock, ours = (build(name, kind, num_hidden_layers=1).to(device) for kind in kinds)
    assert_as_exact(loss_and_gradients(ours, batch), summed(copy.deepcopy(stock), batch), truth(stock, batch))
