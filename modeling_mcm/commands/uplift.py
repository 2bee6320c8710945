# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Says what an offer changes, and whom to offer it within a budget.

    mcm uplift --model runs/quickstart --events log.parquet --rows campaign.csv --outcome spent --cost 1 --budget 500

The rows are of customers who were offered something and of customers like them who were not: their customer, time,
`offered` (true or false) and outcome (a number, or 0 and 1). Printed is what customers bring, less costs, if nobody is
offered, everybody, those with the highest effect, or as many of those with the highest outcome. `--output` gets a row
for each customer: the difference that the offer makes, with its interval, and whether to offer.
"""

from dataclasses import dataclass

from modeling_mcm.customer_model import CustomerModel
from modeling_mcm.data.tables import write_safely
from modeling_mcm.evaluation.comparison import text_table
from modeling_mcm.option import REQUIRED, option

from .arguments import command


@dataclass
class UpliftOptions:
    """Which offer, and what it may cost."""

    model: str = option("Folder of the model.", REQUIRED)
    events: list[str] = option("The log: files or folders, as for mcm prepare.", REQUIRED)
    rows: str = option("Table of those who were offered and those who were not, Parquet or CSV.", REQUIRED)
    outcome: str = option("Column of what came of it, a number.", "outcome")
    offered: str = option("Column that says who was offered: true or false.", "offered")
    cost: float = option("Cost of one offer, in the unit of the outcome.", 0.0)
    budget: float | None = option("The most that offers may cost together. By default all that pay are made.")
    output: str | None = option("CSV file for the customers, those to be offered first.")


@command(__doc__, UpliftOptions)
def main(options: UpliftOptions) -> None:
    """Prints the policies, and writes the customers."""
    model = CustomerModel.load(options.model, options.events)
    result = model.uplift(options.rows, options.outcome, options.offered, options.cost, options.budget)
    policies = result.policies.map("{:.4g}".format).reset_index()
    print(text_table([[*policies], *policies.to_numpy().tolist()]))
    print(f"To be offered: {result.customers['offer'].sum()} of {len(result.customers)} customers.")
    if options.output:
        offered_first = result.customers.sort_values(["offer", "effect"], ascending=False)
        write_safely(offered_first.reset_index(), options.output)
