module modelfile_template
go 1.19
