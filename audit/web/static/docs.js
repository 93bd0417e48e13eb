"use strict";

// Swagger UI fills defaults into its form and sends them. Those of the parameters that exclude
// others would have `since`, `until` and `cursor` refused; without them the service does the same.
const EXCLUDE_OTHERS = ["days", "offset"];

function withoutPrefilled(document) {
  for (const path of Object.values(document.paths)) {
    for (const { parameters = [] } of Object.values(path)) {
      for (const { name, schema } of parameters) {
        if (EXCLUDE_OTHERS.includes(name)) delete schema.default;
      }
    }
  }
  return document;
}

const formPlugin = {
  statePlugins: {
    spec: {
      wrapActions: {
        updateJsonSpec: (update) => (document) => update(withoutPrefilled(document)),
      },
    },
  },
  // Swagger UI takes NDJSON for JSON and would put the lines into a JSON string.
  afterLoad() {
    const { getSampleSchema } = this.fn;
    this.fn.getSampleSchema = (schema, type, ...others) =>
      getSampleSchema(schema, type === "application/x-ndjson" ? "text/plain" : type, ...others);
  },
};

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  plugins: [formPlugin],
  validatorUrl: null,
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  showCommonExtensions: true,
  defaultModelsExpandDepth: 0,
});
