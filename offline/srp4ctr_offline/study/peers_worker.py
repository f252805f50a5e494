"""The peers' side of `peers`: FuxiCTR's DIN and RecBole's BERT4Rec, each trained by its own step on arrays it is given.

It runs in the peers' environment, by `python peers_worker.py TASK FOLDER`, and knows nothing of this project: it reads
`input.npz` and `options.json` in the folder and leaves `output.npz`.

Shapes: T batches, B rows of a batch, L events, N sequences, F features of user and context.
"""

import contextlib
import json
import logging
import os
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def din_agreement(given: Arrays, options: dict[str, Any], _folder: Path) -> Arrays:
    """Click probabilities [B] of FuxiCTR's DIN with our weights, and the gradient of its item embeddings, in float64."""
    model = _din(options).double()
    with torch.no_grad():
        for name, weight in _din_weights(model).items():
            weight.copy_(torch.from_numpy(given[f"weight.{name}"]))
    model.eval()
    batch = _din_batch(given, slice(None))
    answer = model(batch)
    loss = model.compute_loss(answer, model.get_labels(batch).double())
    loss.backward()
    gradient = _din_weights(model)["item"].grad
    assert gradient is not None
    return {"probability": answer["y_pred"].detach().numpy()[:, 0], "gradient": gradient.numpy()}


def din_speed(given: Arrays, options: dict[str, Any], _folder: Path) -> Arrays:
    """CPU seconds [T] of FuxiCTR's own training step on batches [T, B]."""
    torch.manual_seed(0)
    model = _din(options)
    # What `fit` sets before its first epoch.
    model._max_gradient_norm, model._batch_index = options["max_gradient_norm"], 0  # noqa: SLF001
    model.train()
    seconds = []
    for place in range(len(given["candidate"])):
        batch = _din_batch(given, place)
        began = time.process_time()
        model.train_step(batch)
        seconds.append(time.process_time() - began)
    return {"seconds": np.array(seconds)}


def _din(options: dict[str, Any]) -> Any:
    from fuxictr.features import FeatureMap  # type: ignore[import-not-found, unused-ignore]
    from model_zoo.LongCTR.DIN.DIN import DIN  # type: ignore[import-not-found, unused-ignore]

    features = FeatureMap("peers", ".")
    features.labels, features.default_emb_dim = ["label"], options["width"]
    features.features = OrderedDict(
        (name, {"type": "categorical", "source": source, "vocab_size": size, "padding_idx": 0})
        for name, source, size in options["features"]
    )
    features.num_fields = features.get_num_fields()
    return DIN(
        features,
        dnn_hidden_units=options["tower"],
        attention_hidden_units=options["attention"],
        attention_hidden_activations="ReLU",
        embedding_dim=options["width"],
        net_dropout=options["dropout"],
        learning_rate=options["learning_rate"],
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC"],
        model_root=".",
        verbose=0,
    )


def _din_weights(model: Any) -> dict[str, torch.Tensor]:
    """Its weights under our names."""
    weights = {
        name: layer.weight for name, layer in model.embedding_layer.embedding_layer.embedding_layers.items()
    }
    for name, block in (("attention", model.attention_layers.attention_layer), ("tower", model.dnn)):
        linear = [layer for layer in block.mlp if isinstance(layer, torch.nn.Linear)]
        for place, layer in enumerate(linear):
            weights |= {f"{name}.{place}.weight": layer.weight, f"{name}.{place}.bias": layer.bias}
    return weights


def _din_batch(given: Arrays, place: int | slice) -> tuple[dict[str, Any], dict[str, Any], torch.Tensor]:
    """What its data loader makes of a batch: features of the row, items of history and candidate, mask."""
    events_BL = torch.from_numpy(given["events"][place])
    items_BS = torch.cat([events_BL, torch.from_numpy(given["candidate"][place])[:, None]], dim=1)
    rows = {"label": torch.from_numpy(given["label"][place])}
    rows |= {f"side{i}": codes for i, codes in enumerate(torch.from_numpy(given["side"][place]).unbind(1))}
    return rows, {"item": items_BS.flatten()}, (events_BL > 0).float()


def bert4rec_speed(given: Arrays, options: dict[str, Any], folder: Path) -> Arrays:
    """CPU seconds [1] of one epoch of RecBole's trainer: its loader, its masking, its step, without evaluation."""
    # Names that NumPy 2 has taken away and RecBole 1.2.1 still asks for.
    for name, kind in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        setattr(np, name, kind)
    from recbole.config import Config  # type: ignore[import-not-found, unused-ignore]
    from recbole.data import create_dataset, data_preparation  # type: ignore[import-not-found, unused-ignore]
    from recbole.utils import get_model, get_trainer, init_seed  # type: ignore[import-not-found, unused-ignore]

    write_sequences(folder / "sequences", given["sequences"], int(given["codes"]))
    config = Config(
        model="BERT4Rec",
        dataset="sequences",
        config_dict={
            "data_path": str(folder),
            "benchmark_filename": ["train", "valid", "test"],
            "alias_of_item_id": ["item_id_list"],
            "load_col": {"inter": ["user_id", "item_id", "item_id_list"]},
            "train_neg_sample_args": None,
            "eval_args": {"order": "TO", "group_by": "user", "mode": "full"},
            "loss_type": "CE",
            "use_gpu": False,
            "gpu_id": "",
            "show_progress": False,
            "state": "ERROR",
            "checkpoint_dir": str(folder),
            **options["config"],
        },
    )
    init_seed(config["seed"], reproducibility=True)
    dataset = create_dataset(config)
    train = data_preparation(config, dataset)[0]
    model = get_model(config["model"])(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    torch.set_num_threads(1)
    began = time.process_time()
    trainer._train_epoch(train, 0)  # noqa: SLF001
    seconds = time.process_time() - began
    return {
        "seconds": np.array([seconds]),
        "sequences": np.array(len(train.dataset)),
        "items": np.array(dataset.item_num),
    }


def write_sequences(folder: Path, sequences_NL: NDArray[Any], codes: int) -> None:
    """RecBole's atomic files: the sequences to train on, 0 where there is no event; and every code from 2 to `codes`.

    The other two splits are never looked at; they hold all items, so that the vocabulary is that of the whole
    catalogue.
    """
    folder.mkdir()
    catalogue = np.arange(2, codes)
    length = sequences_NL.shape[1]
    rest = [catalogue[at : at + length] for at in range(0, len(catalogue), length)]
    for split, sequences in (
        ("train", [one[one > 0] for one in sequences_NL]),
        ("valid", rest),
        ("test", rest),
    ):
        lines = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
        lines += [
            f"{split}{place}\t{' '.join(map(str, items))}\t{items[-1]}"
            for place, items in enumerate(sequences)
        ]
        (folder / f"{folder.name}.{split}.inter").write_text("\n".join(lines) + "\n")


TASKS: dict[str, Callable[[Arrays, dict[str, Any], Path], Arrays]] = {
    "din_agreement": din_agreement,
    "din_speed": din_speed,
    "bert4rec_speed": bert4rec_speed,
}


def main(task: str, folder: Path) -> None:
    """Do one task; what the peers print is of no interest."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    options = json.loads((folder / "options.json").read_bytes())
    with np.load(folder / "input.npz") as given, Path(os.devnull).open("w") as nowhere:
        arrays = dict(given)
        with contextlib.redirect_stdout(nowhere):
            answer = TASKS[task](arrays, options, folder)
    np.savez(folder / "output.npz", allow_pickle=False, **answer)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
