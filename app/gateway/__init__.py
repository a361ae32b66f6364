"""The PACS gateway: receives chest CTs over the network, runs the application on them, and sends the results back."""
