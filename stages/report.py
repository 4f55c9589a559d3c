"""Present the results of the run as a web page and a model card, and the audit of the data as a table.

Reads what all other stages wrote, and the baseline's metrics in artifacts/baseline/DATASET/ if they are there.
Writes to artifacts/report/: index.html (one file, no network), MODEL_CARD.md, and audit.csv, the findings about single
examples. Values that differ between runs (times, the last commit's metrics) go to local.js, which is not an output of
the stage: the page shows them if the file lies beside it and belongs to the same model.
Fails when a file is not what its stage wrote, or when the model and the data do not fit together.
"""

import json

from stages.core.config.params import Params, load_params
from stages.core.data.splits import read_dataset
from stages.core.deploy.onnx_model import OnnxModel
from stages.core.files import layout, schemas
from stages.core.files.atomic import replacing
from stages.core.files.errors import report_errors
from stages.core.files.exclusive import exclusive
from stages.core.files.tables import read_json, read_table, write_table
from stages.core.nets.manifest import check_data, read_manifest
from stages.core.reporting.audit import audit, defuse, schema
from stages.core.reporting.context import Run, page_context, shared_context
from stages.core.reporting.local import local_facts
from stages.core.reporting.templates import load_templates


def read_run(params: Params) -> Run:
    """Return what the other stages wrote, verified and validated."""
    layout.NORMALIZE.verify(layout.NORMALIZED, layout.DATA_DETAILS)
    layout.TRAIN.verify(layout.MANIFEST, layout.HISTORY)
    layout.EVALUATE.verify(layout.METRICS, layout.DETAILS, layout.PER_CLASS, layout.PREDICTIONS, layout.LABEL_ERRORS)
    layout.EXPORT.verify(layout.ONNX)
    layout.PARITY.verify(layout.PARITY_METRICS, layout.PARITY_DETAILS)
    dataset, manifest = read_dataset(), read_manifest()
    check_data(manifest)
    test, num_classes = dataset.read("test"), len(manifest.spec.classes)
    return Run(
        params=params,
        manifest=manifest,
        onnx=OnnxModel(layout.ONNX),
        train=dataset.read("train"),
        validation=dataset.read("validation"),
        test=test,
        examples=dataset.examples,
        history=read_table(layout.HISTORY, schemas.history()),
        predictions=read_table(layout.PREDICTIONS, schemas.predictions(num_classes, len(test.labels))),
        per_class=read_table(layout.PER_CLASS, schemas.per_class()),
        label_errors=read_table(layout.LABEL_ERRORS, schemas.label_errors(num_classes)),
        data=read_json(layout.DATA_DETAILS),
        evaluation=read_json(layout.METRICS) | read_json(layout.DETAILS),
        parity=read_json(layout.PARITY_METRICS) | read_json(layout.PARITY_DETAILS),
    )


def main() -> None:
    run = read_run(load_params())
    context, templates = shared_context(run), load_templates()
    findings = audit(run.examples, run.label_errors, run.manifest.spec.classes)
    write_table(defuse(findings), layout.AUDIT, schema(), for_people=True)
    with replacing(layout.PAGE) as partial:
        page = templates.get_template("report.html.jinja")
        partial.write_text(page.render(context, **page_context(run, findings)), encoding="utf-8")
    with replacing(layout.CARD) as partial:
        card = templates.get_template("model_card.md.jinja")
        partial.write_text(card.render(context), encoding="utf-8")
    layout.REPORT.record(layout.PAGE, layout.CARD, layout.AUDIT)
    facts = json.dumps(local_facts(run.onnx, run.test.inputs, run.params.dataset), indent=2)
    with replacing(layout.LOCAL) as partial:
        partial.write_text(f"window.local = {facts};\n", encoding="utf-8")
    size = layout.PAGE.stat().st_size / 1e6
    print(f"report: {size:.1f} MB, in {layout.PAGE}; {len(findings):,} findings about the data, in {layout.AUDIT}")


if __name__ == "__main__":
    with report_errors("report"), exclusive("report"):
        main()
