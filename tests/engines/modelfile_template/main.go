// Renders conversations with a Modelfile's template, as Ollama does: {"Template", "Conversations"} in JSON on the
// standard input, texts on the standard output.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var job struct {
		Template      string
		Conversations [][]message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(job.Template))
	texts := []string{}
	for _, messages := range job.Conversations {
		var text bytes.Buffer
		if err := parsed.Execute(&text, map[string]any{"Messages": messages}); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
