"""One self-contained HTML page: charts by plotly, with tables, nothing loaded from elsewhere."""
