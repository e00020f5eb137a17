"""A run's embeddings as tables."""

from .conventions import Record, conventions, measured
from .sheet import Sheet

MEASURES = {
    "alignment": "alignment: squared distance within a class",
    "uniformity": "uniformity: log of the mean exp(-2 squared distance)",
    "mean_cosine": "cosine of two images, mean",
    "min_cosine": "cosine of two images, least",
    "effective_rank": "effective rank",
}


def sheet(record: Record) -> Sheet:
    """A column per space: what can be read from it, how it lies, how far the attack moves it, and the warnings."""
    spaces, data, attack = record["spaces"], record["data"], record["attack"]
    fitted, voters = (
        f"{record['fitted_to']['images']:,} {record['fitted_to']['split']} images",
        record["nearest_neighbours"],
    )
    readers = {
        "linear_probe": f"linear probe, fitted to {fitted}",
        "nearest_neighbours": f"{voters['neighbours']} nearest of them, temperature {voters['temperature']:g}",
    }
    rows = [["dimensions", *(str(space["dimensions"]) for space in spaces.values())]]
    for name, label in readers.items():
        rows.append([label, *(measured(space[name]) for space in spaces.values())])
    for name, label in MEASURES.items():
        rows.append([label, *(f"{space[name]:.5g}" for space in spaces.values())])
    rows.append(
        [f"distance moved by {attack['label']}", *(f"{space['moved_by_attack']:.4f}" for space in spaces.values())]
    )
    for of_class in zip(*(space["per_class"] for space in spaces.values()), strict=True):
        rows.append([f"    {of_class[0]['class']}", *(f"{each['moved_by_attack']:.4f}" for each in of_class)])
    title = f"{record['model']['source']} on {data['name']} {data['split']}, {data['images']:,} images"
    notes = [f"{attack['label']}: {conventions(attack | {'dtype': 'float32'})}"]
    return Sheet(title, ["unit embeddings", *spaces], rows, notes + [f"warning: {each}" for each in record["warnings"]])
