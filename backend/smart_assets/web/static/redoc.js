// Starts ReDoc.
Redoc.init(
  new URL("openapi.json", document.baseURI).href,
  { disableSearch: false, expandResponses: "200,201", hideHostname: true, scrollYOffset: "nav.documents", theme: {} },
  document.getElementById("redoc"),
);
