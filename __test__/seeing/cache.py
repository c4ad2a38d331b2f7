# A cache entry is made for each page, amid the page's own strings: the line that pins is not the line that is wrong.
cache = []


def parse(page):
    return ['item %d of page %d' % (item, page) for item in range(400)]


def remember(page):
    cache.append(('page', page + 1000, 'etag-%d' % page))


def answer(pages):
    parsed = []
    for page in range(pages):
        parsed.append(parse(page))
        remember(page)
    return sum(len(items) for items in parsed)


print(answer(1_000), len(cache))
