"""What a file will be, tensor by tensor, before there is one."""
