"""Make `golden/embeddings.json`: what sentence-transformers computes of sentence embeddings.

Hidden states of texts go through its pooling and normalization to its losses, with the gradient of
every state; and its evaluators score vectors as search results and as similarities. Everything is
computed in float64. Needs sentence-transformers 6.2.0 beside `requirements.txt`.

    python make_embeddings.py
"""

import json
from pathlib import Path

import torch
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.util import cos_sim
from scipy.stats import pearsonr, spearmanr

GOLDEN = Path(__file__).parent / "golden" / "embeddings.json"
HIDDEN, EXAMPLES = 6, 5
SCORES = [0.9, 0.1, 0.5, 0.5, 0.3]
LOSSES = {
    "multiple-negatives-ranking": losses.MultipleNegativesRankingLoss,
    "multiple-negatives-symmetric-ranking": lambda model: losses.MultipleNegativesRankingLoss(
        model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    ),
    "cosine-similarity": losses.CosineSimilarityLoss,
    "cosent": losses.CoSENTLoss,
}
# Loss, texts of an example, pooling, whether embeddings are normalized.
CASES = [
    ("multiple-negatives-ranking", 2, "mean", True),
    ("multiple-negatives-ranking", 3, "mean", False),
    ("multiple-negatives-symmetric-ranking", 2, "cls", False),
    ("multiple-negatives-symmetric-ranking", 3, "lasttoken", True),
    ("cosine-similarity", 2, "mean", False),
    ("cosent", 2, "cls", True),
]


def loss_case(number: int, loss: str, texts: int, pooling: str, normalize: bool) -> dict:
    """States of `EXAMPLES` times `texts` texts in the order of the examples, and their loss."""
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(1, 5, (EXAMPLES * texts,), generator=generator).tolist()
    states = [
        torch.randn(n, HIDDEN, generator=generator).double().requires_grad_() for n in lengths
    ]
    width = max(lengths)
    padded = torch.stack(
        [torch.cat([row, torch.zeros(width - len(row), HIDDEN).double()]) for row in states]
    )
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    features = {"token_embeddings": padded, "attention_mask": mask}
    features = Pooling(HIDDEN, pooling)(features)
    if normalize:
        features = Normalize()(features)
    embeddings = features["sentence_embedding"]
    columns = [embeddings[column::texts] for column in range(texts)]
    labels = torch.tensor(SCORES, dtype=torch.float64)
    # `CosineSimilarityLoss` makes labels float32.
    scored = loss in ("cosine-similarity", "cosent")
    if loss == "cosine-similarity":
        value = torch.nn.functional.mse_loss(torch.cosine_similarity(*columns), labels)
        single = LOSSES[loss](None).compute_loss_from_embeddings([it.float() for it in columns], labels)
        assert abs(value - single) < 1e-6
    else:
        value = LOSSES[loss](None).compute_loss_from_embeddings(columns, labels)
    value.backward()
    return {
        "loss": loss,
        "texts": texts,
        "pooling": pooling,
        "normalize": normalize,
        "scores": SCORES if scored else None,
        "lengths": lengths,
        "states": flat(states),
        "embeddings": flat([embeddings]),
        "value": float(value),
        "gradient": flat([row.grad for row in states]),
    }


def flat(tensors: list[torch.Tensor]) -> list[float]:
    """All values in a row."""
    return [round(float(value), 9) for tensor in tensors for value in tensor.detach().flatten()]


def retrieval() -> dict:
    """Search results: of each query, the corpus by cosine, scored with its relevant documents."""
    generator = torch.Generator().manual_seed(99)
    queries = torch.randn(9, HIDDEN, generator=generator).double()
    corpus = torch.randn(40, HIDDEN, generator=generator).double()
    relevant = [
        sorted(torch.randperm(40, generator=generator)[: 1 + number % 4].tolist()) for number in range(9)
    ]
    scores = cos_sim(queries, corpus)
    evaluator = InformationRetrievalEvaluator(
        {str(number): "" for number in range(9)},
        {f"{number:02}": "" for number in range(40)},
        {str(number): {f"{it:02}" for it in documents} for number, documents in enumerate(relevant)},
    )
    results = [
        [{"corpus_id": f"{number:02}", "score": float(score)} for number, score in enumerate(row)]
        for row in scores
    ]
    measured = evaluator.compute_metrics(results)
    names = {
        "accuracy@1": ("accuracy@k", 1),
        "accuracy@10": ("accuracy@k", 10),
        "recall@10": ("recall@k", 10),
        "mrr@10": ("mrr@k", 10),
        "ndcg@10": ("ndcg@k", 10),
        "map@100": ("map@k", 100),
    }
    return {
        "queries": [flat([row]) for row in queries],
        "corpus": [flat([row]) for row in corpus],
        "relevant": relevant,
        "scores": {name: float(measured[metric][k]) for name, (metric, k) in names.items()},
    }


def similarity() -> dict:
    """Cosine similarities of pairs, correlated with scores as `EmbeddingSimilarityEvaluator` does."""
    generator = torch.Generator().manual_seed(7)
    pairs = torch.randn(12, 2, HIDDEN, generator=generator).double()
    scores = torch.randint(0, 6, (12,), generator=generator).tolist()
    cosines = torch.cosine_similarity(pairs[:, 0], pairs[:, 1]).tolist()
    return {
        "pairs": [[flat([text]) for text in pair] for pair in pairs],
        "labels": scores,
        "scores": {
            "pearson": float(pearsonr(scores, cosines)[0]),
            "spearman": float(spearmanr(scores, cosines)[0]),
        },
    }


if __name__ == "__main__":
    golden = {
        "hidden_size": HIDDEN,
        "losses": [loss_case(number, *case) for number, case in enumerate(CASES)],
        "retrieval": retrieval(),
        "similarity": similarity(),
    }
    GOLDEN.write_text(json.dumps(golden) + "\n")
    print(GOLDEN, GOLDEN.stat().st_size)
