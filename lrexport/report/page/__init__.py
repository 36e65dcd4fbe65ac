"""One self-contained HTML page: charts by plotly, tables beside them, nothing fetched."""
