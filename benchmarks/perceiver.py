"""What a training step of the Perceiver costs, against the straightforward way of writing it.

Straightforward: every modality is padded to its longest record and projected padded, keys and values are computed of padding too, and every expert is asked
for every latent. Both have the same weights, losses and optimiser, and must give the same logits. Random records: lengths are drawn up to --most tokens a
modality, a fifth of the modalities are missing. Times are the least of a few rounds, in CPU milliseconds of one thread.

    python -m benchmarks.perceiver --width 64 --latents 8 --blocks 2 --hidden 128 --batch 32 --most 15
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from stages.datasets.records import Record, Records, Tokens, packed
from stages.fusion.perceiver.experts import Routing
from stages.fusion.perceiver.learning import Source, Trainee, optimiser, ragged
from stages.fusion.perceiver.tokens import key, time_code
from stages.fusion.perceiver.trunk import Network, Reading
from stages.fusion.perceiver_moe import PerceiverMoE

WIDTHS = {"text": 384, "image": 1280, "video": 1280, "audio": 128, "series": 64}


def drawn(count: int, most: int, missing: float = 0.2) -> Records:
    draw, found = torch.Generator().manual_seed(0), []
    for number in range(count):
        gone = torch.rand(len(WIDTHS), generator=draw) < missing
        gone[int(torch.randint(len(WIDTHS), (1,), generator=draw))] = False
        lengths = torch.randint(1, most + 1, (len(WIDTHS),), generator=draw).tolist()
        have = [(name, length) for name, absent, length in zip(WIDTHS, gone.tolist(), lengths) if not absent]
        tokens = {name: Tokens(torch.randn(length, WIDTHS[name], generator=draw), torch.linspace(0, 1, length)) for name, length in have}
        found.append(Record(f"r{number}", tokens, number % 2))
    return packed(found, WIDTHS)


class Plain(torch.nn.Module):
    """The logits and losses of a Network, padded from the start."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.tokeniser = network, network.tokeniser

    def forward(self, tokens: dict) -> Reading:
        padded, masks, present, means = zip(*(self._padded(name, one) for name, one in tokens.items()))
        network, rows, mask, present = self.network, torch.cat(padded, 1), torch.cat(masks, 1), torch.stack(present, 1)
        presence = present.float() @ torch.stack([network.presence[key(name)] for name in tokens])
        latents, routings = network.latents.expand(len(mask), -1, -1), []
        for block in network.blocks:
            key_value = block.reads.key_value(block.norms["tokens"](rows))
            latents = latents + block.reads(block.norms["latents"](latents), key_value, mask)[0]
            normed = block.norms["within"](latents)
            latents = latents + block.within(normed, block.within.key_value(normed))[0]
            fed, routing = self._fed(block, block.norms["feed"](latents).flatten(0, 1), presence.repeat_interleave(latents.shape[1], 0))
            latents, routings = latents + fed.view_as(latents), [*routings, routing]
        normed = network.pooled_norm(latents)
        pooled = network.pool(network.asks.expand(len(mask), -1, -1), network.pool.key_value(normed))[0][:, 0]
        alone = torch.cat([network.alone[key(name)](mean) for name, mean in zip(tokens, means)], 1)
        return Reading(network.head(pooled)[:, 0], alone, present, latents, latents, latents, routings)

    def _padded(self, name: str, one: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lengths = one.lengths
        values, times = (torch.nn.utils.rnn.pad_sequence(part.split(lengths.tolist()), batch_first=True) for part in (one.values, one.time))
        batch, length = times.shape
        found = self.tokeniser.adapters[key(name)](values.flatten(0, 1)).view(batch, length, -1)
        found = found + self.tokeniser.time(time_code(times.flatten())).view_as(found) + self.tokeniser.position(torch.arange(length))
        mask = torch.arange(length) < lengths[:, None]
        absent = (lengths == 0)[:, None]
        first = torch.where(absent, self.tokeniser.absent[key(name)], found[:, 0])
        found = torch.cat([first[:, None], found[:, 1:]], 1) + self.tokeniser.embedding[key(name)]
        mask = torch.cat([mask[:, :1] | absent, mask[:, 1:]], 1)
        mean = (found * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return found, mask, lengths > 0, mean

    def _fed(self, block: torch.nn.Module, rows: Tensor, presence: Tensor) -> tuple[Tensor, Routing]:
        routing = block.feed.router(torch.cat([rows, presence], 1))
        experts = block.feed.experts
        outputs = [experts._one(number, rows) for number in range(len(experts.first))]
        return sum(gate[:, None] * output for gate, output in zip(routing.gates.T, outputs)), routing


def step(network: torch.nn.Module, trainee: Trainee, adam: torch.optim.Optimizer, records: dict, label: Tensor) -> None:
    terms = trainee.terms(network(records), label)
    adam.zero_grad()
    (terms["cross_entropy"] + 0.01 * terms["balance"] + 0.001 * terms["z"] + 0.3 * terms["unimodal"]).backward()
    adam.step()


def least_ms(call: Callable[[], object], rounds: int = 30) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"width": 64, "latents": 8, "heads": 4, "blocks": 2, "experts": 4, "top_k": 2, "hidden": 128, "batch": 32, "most": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())
    batch, most = given.pop("batch"), given.pop("most")
    torch.set_num_threads(1)
    detector = PerceiverMoE(**given).open(WIDTHS)
    taken = Source(drawn(batch, most)).take(list(range(batch)))
    tokens, label = ragged(taken.features, list(WIDTHS)), taken.features["label"]
    trainee = Trainee(detector.network, 0.999, detector.objective, 1, 0.0)
    ours, plain = trainee.live, Plain(trainee.live)
    with torch.no_grad():
        apart = (ours.eval()(tokens).logit - plain.eval()(tokens).logit).abs().max().item()
    adam = optimiser(trainee, 1e-4, 0.05)([one for one in trainee.parameters() if one.requires_grad])
    trainee.train()
    sequences = ours.tokeniser(tokens)
    times = [least_ms(lambda network=network: step(network, trainee, adam, tokens, label)) for network in (plain, ours)]
    print(f"{len(sequences.rows)} tokens in {batch} records, {sum(one.numel() for one in ours.parameters())} parameters; logits {apart:.1e} apart")
    print(f"a training step: padded and all experts {times[0]:.1f} ms, ours {times[1]:.1f} ms, {times[0] / times[1]:.2f} times as fast")
    if apart > 1e-5:
        raise SystemExit("the two do not agree")


if __name__ == "__main__":
    main()
