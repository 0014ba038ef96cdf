"""The DAG of notebooks: Snakemake orders them, papermill executes each, a manifest says that one is done."""
