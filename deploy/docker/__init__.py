"""What runs in the containers of compose.yaml besides the services."""
