"""The DAG of notebooks: Snakemake orders, papermill executes, a manifest says that one is done."""
