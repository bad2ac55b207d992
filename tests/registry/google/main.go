// A registry with the referrers API: go-containerregistry's own, which `crane registry serve` serves without it.
// main ADDRESS FOLDER
package main

import (
	"log"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	blobs := registry.WithBlobHandler(registry.NewDiskBlobHandler(os.Args[2]))
	handler := registry.New(blobs, registry.WithReferrersSupport(true))
	log.Fatal(http.ListenAndServe(os.Args[1], handler))
}
