"""Pages in a browser."""

import pytest


@pytest.fixture
def opened(browser):
    """Opens a file; at the end nothing may have been complained about or loaded from elsewhere."""
    wrong = []

    def open_page(path, width=1440, tail=""):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
        page.goto(f"file://{path}{tail}")
        page.wait_for_selector("#grid li")
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    assert wrong == []
