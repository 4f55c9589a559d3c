"""Provide the page to draw on, and the security policy that browsers enforce on it."""

import base64
import hashlib
import re
from pathlib import Path

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def security_policy(html: str) -> str:
    """Return a Content-Security-Policy that allows only what is in the page and requests to this service."""

    def allowed(tag: str) -> str:
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


HEADERS = {"Content-Security-Policy": security_policy(PAGE), "Cache-Control": "no-cache"}
