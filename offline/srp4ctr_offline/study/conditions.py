"""What production does to a trained model: stored states, states that lag behind, new items, strangers."""

from srp4ctr_offline.predict import Condition

CONDITIONS = {
    "state_float32": Condition(state_dtype="float32"),
    "state_float16": Condition(state_dtype="float16"),
    "state_int8": Condition(state_dtype="int8"),
    **{f"missing_{events}": Condition(missing_events=events) for events in (1, 4, 16, 64)},
    "new_items": Condition(new_items=True),
    "no_history": Condition(missing_events=1 << 30),
}
"""By name, in the order of the report; a cell's predictions under one lie beside its own."""
