"""The reading list as pages: FastAPI, templates rendered here, one style sheet, one small script, no outside request.

A reader of `orrery.catalogue` and the registry's index, with no logic of its own: what is found, counted or changed is
found, counted and changed there. Needs the extra `web`; imports no torch.

    app.py        the application, put together          pages.py   what is read      forms.py  what is changed
    guard.py      hosts, sizes, time, queue, headers     api.py     JSON, OpenAPI     feeds.py  files and feeds
    sessions.py   cookies, tokens of forms, who reads    views.py   what a page shows, shared with export.py
    rendering.py  templates, links, cached pages         server.py  the process       emblem.py the planets of a day
"""
