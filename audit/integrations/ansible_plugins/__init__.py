"""The folder that Ansible looks into for the callback plugin."""
