"""Drop-offs: folder, FTP(S), SFTP, object storage; what lies there whole, and nothing of what is in it."""
