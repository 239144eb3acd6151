"use strict";

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

function table(rows) {
  const made = element("table");
  for (const cells of rows) {
    const line = element("tr");
    line.append(...cells.map((text) => element("td", text)));
    made.append(line);
  }
  return made;
}

function resolve(api, schema) {
  return schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema ?? {};
}

function kindOf(api, schema) {
  const found = resolve(api, schema);
  const parts = (found.anyOf ?? found.oneOf)?.map((part) => kindOf(api, part));
  if (parts) return [...new Set(parts)].join(" or ");
  return found.type === "array" ? `list of ${kindOf(api, found.items)}` : found.title && found.type === "object" ? found.title : found.type ?? "any";
}

function fields(api, schema) {
  const found = resolve(api, schema), required = new Set(found.required ?? []);
  return Object.entries(found.properties ?? {}).map(([name, field]) =>
    [name, kindOf(api, field), required.has(name) ? "required" : "default" in field ? `default ${JSON.stringify(field.default)}` : "", field.description ?? ""]);
}

function operation(api, path, method, described) {
  const made = element("article"), call = element("code", `${method.toUpperCase()} ${path.replace(":path", "")}`);
  const heading = element("h2");
  heading.append(call);
  made.append(heading, element("p", described.description ?? described.summary ?? ""));
  const parameters = (described.parameters ?? []).map((p) =>
    [p.name, kindOf(api, p.schema), p.required ? "required" : `default ${JSON.stringify(p.schema.default)}`, p.description ?? p.schema.description ?? ""]);
  if (parameters.length) made.append(table(parameters));
  let schema = described.requestBody?.content?.["application/json"]?.schema;
  if (schema) {
    schema = schema.oneOf?.[0] ?? schema.anyOf?.[0] ?? schema;
    made.append(table(fields(api, schema)));
    for (const example of resolve(api, schema).examples ?? []) {
      made.append(element("pre",
        `curl -X POST ${location.origin}${path} \\\n  -H 'content-type: application/json' \\\n  -d '${JSON.stringify(example)}'`));
    }
  }
  made.append(table(Object.entries(described.responses).map(([status, response]) => {
    const content = response.content?.["application/json"]?.schema;
    return [status, content ? kindOf(api, content) : "", response.description];
  })));
  return made;
}

async function start() {
  const api = await (await fetch("/openapi.json")).json();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, described] of Object.entries(methods)) {
      document.getElementById("api").append(operation(api, path, method, described));
    }
  }
}

start();
