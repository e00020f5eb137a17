"""A run's embeddings as tables on standard output."""

from rich.table import Table

from .table import Record, conventions, interval, output, percent

MEASURES = {
    "alignment": "alignment: squared distance within a class",
    "uniformity": "uniformity: log of the mean exp(-2 squared distance)",
    "mean_cosine": "cosine of two images, mean",
    "min_cosine": "cosine of two images, least",
    "effective_rank": "effective rank",
}


def show(record: Record) -> None:
    """A column per space: what can be read from it, how it lies, how far the attack moves it, and the warnings."""
    console, spaces, data, attack = output(), record["spaces"], record["data"], record["attack"]
    title = f"{record['model']['source']} on {data['name']} {data['split']}, {data['images']:,} images"
    table = Table("unit embeddings", *spaces, title=title, title_justify="left")
    voters = record["nearest_neighbours"]
    fitted = f"{record['fitted_to']['images']:,} {record['fitted_to']['split']} images"
    readers = {
        "linear_probe": f"linear probe, fitted to {fitted}",
        "nearest_neighbours": f"{voters['neighbours']} nearest of them, temperature {voters['temperature']:g}",
    }

    def row(label: str, cells: list[str]) -> None:
        table.add_row(label, *cells)

    row("dimensions", [str(space["dimensions"]) for space in spaces.values()])
    for name, label in readers.items():
        row(label, [f"{percent(space[name]['accuracy'])} {interval(space[name])}" for space in spaces.values()])
    for name, label in MEASURES.items():
        row(label, [f"{space[name]:.5g}" for space in spaces.values()])
    row(f"distance moved by {attack['label']}", [f"{space['moved_by_attack']:.4f}" for space in spaces.values()])
    for rows in zip(*(space["per_class"] for space in spaces.values()), strict=True):
        row(f"    {rows[0]['class']}", [f"{of_class['moved_by_attack']:.4f}" for of_class in rows])
    console.print(table)
    console.print(f"{attack['label']}: {conventions(attack | {'dtype': 'float32'})}", highlight=False, markup=False)
    for warning in record["warnings"]:
        console.print(f"warning: {warning}", highlight=False, markup=False)
