"""fairlead doctor: what is wrong and what to do."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.markup import escape

from fairlead.cli.app import Invocation, pass_invocation, root
from fairlead.cli.examine import Finding, Verdict, examine
from fairlead.cli.failures import EXIT_WRONG
from fairlead.cli.output import Output
from fairlead.cli.settings import OUTPUTS

_MARKS = {
    Verdict.GOOD: "[green]✓[/]",
    Verdict.DOUBTFUL: "[yellow]![/]",
    Verdict.WRONG: "[red]✗[/]",
    Verdict.SKIPPED: "[dim]-[/]",
}


@root.command("doctor")
@click.option("--tenant", help="Check this tenant's key of the local platform.")
@click.pass_context
@pass_invocation
def doctor(invocation: Invocation, context: click.Context, tenant: str | None) -> None:
    """Check the configuration, the routers, the control plane, the replicas, the quotas and the key.

    Ends with 1 when something is wrong.
    """
    findings = list(examine(invocation.given, tenant))
    wrong = [finding for finding in findings if finding.verdict is Verdict.WRONG]
    # The settings themselves may be what is broken, so the form is read without them.
    output = Output(invocation.form if invocation.form in OUTPUTS else "table")
    if not output.for_people:
        output.data({"healthy": not wrong, "checks": [_row(finding) for finding in findings]})
    else:
        for finding in findings:
            line = f"{_MARKS[finding.verdict]} [bold]{finding.check}[/]: {escape(finding.detail)}"
            output.console.print(line, soft_wrap=True)
            if finding.remedy:
                output.console.print(f"    → {escape(finding.remedy)}", soft_wrap=True)
        output.console.print(f"[red]{len(wrong)} wrong[/]" if wrong else "[green]nothing is wrong[/]")
    context.exit(EXIT_WRONG if wrong else 0)


def _row(finding: Finding) -> dict[str, str]:
    return {**asdict(finding), "verdict": finding.verdict.value}
